//! Which addresses the relay dials: none that belongs to a special-purpose network, so that nobody who may
//! write an endpoint's URL or its DNS records reaches the network that the relay stands in.
//!
//! Rules: *every* address that a name resolves to must pass, else none is dialled; exactly what was vetted is
//! dialled (the check sits in the client's resolver, so a name that answers differently the second time gains
//! nothing, and pooled connections are kept); a literal address in the URL, in whatever spelling, passes the same
//! list. An IPv4-mapped or NAT64 address is judged as the IPv4 address in it. `allow_networks` of the endpoint
//! makes exceptions, and a refusal names the address and that setting.
//!
//! Sources: IANA's special-purpose registries (RFC 6890 and its updates), RFC 6052 for NAT64.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// Special-purpose IPv4 networks, each with what it is.
const REFUSED_V4: [(Ipv4Net, &str); 15] = [
    (v4(0, 0, 0, 0, 8), "this network"),
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(100, 64, 0, 0, 10), "a provider's shared network"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 0, 0, 0, 24), "protocol assignments"),
    (v4(192, 0, 2, 0, 24), "documentation"),
    (v4(192, 88, 99, 0, 24), "6to4 relays"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(198, 18, 0, 0, 15), "benchmarks"),
    (v4(198, 51, 100, 0, 24), "documentation"),
    (v4(203, 0, 113, 0, 24), "documentation"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
];

/// Special-purpose IPv6 networks. `::/8` holds the unspecified address, loopback and both embeddings of IPv4,
/// which are unpacked before this list is asked.
const REFUSED_V6: [(Ipv6Net, &str); 12] = [
    (v6(0x64, 0xff9b, 32), "IPv4 translation"),
    (v6(0, 0, 8), "reserved, loopback among it"),
    (v6(0x100, 0, 64), "discard"),
    (v6(0x2001, 0, 23), "protocol assignments"),
    (v6(0x2001, 0xdb8, 32), "documentation"),
    (v6(0x2002, 0, 16), "6to4"),
    (v6(0x3fff, 0, 20), "documentation"),
    (v6(0x5f00, 0, 16), "segment routing"),
    (v6(0xfc00, 0, 7), "private (unique local)"),
    (v6(0xfe80, 0, 10), "link-local"),
    (v6(0xfec0, 0, 10), "site-local"),
    (v6(0xff00, 0, 8), "multicast"),
];

/// The well-known NAT64 prefix, `64:ff9b::/96` (RFC 6052).
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 96);

/// An address that is not dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the address {address} is refused: {network} is {purpose}; where the receiver really is there, add \"{network}\" \
     or a part of it to allow_networks in [endpoints.{endpoint}]"
)]
pub struct RefusedAddress {
    /// The address, as resolved.
    pub address: IpAddr,
    /// The network of the list that holds it.
    pub network: IpNet,
    /// What that network is for.
    pub purpose: &'static str,
    /// The endpoint whose setting would allow it.
    pub endpoint: String,
}

/// A URL that is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedUrl {
    /// It cannot be parsed or has no host.
    #[error("url is not an address that begins with https:// (it is not shown)")]
    Form,
    /// Another scheme, or `http` without leave.
    #[error("url begins with {0}://; use https://, or set allow_http = true for http://")]
    Scheme(String),
    /// User info would travel in logs of everybody on the way.
    #[error("url holds a user name or password; put them into headers, as authorization = \"Basic …\"")]
    Credentials,
    /// A literal address that the list refuses.
    #[error("url: {0}")]
    Address(#[from] RefusedAddress),
}

/// The rules of one endpoint.
#[derive(Debug, Clone)]
pub struct AddressFilter {
    endpoint: String,
    allowed: Vec<IpNet>,
}

impl AddressFilter {
    /// The list, with the exceptions of one endpoint.
    #[must_use]
    pub fn new(endpoint: &str, allow_networks: &[IpNet]) -> Self {
        Self { endpoint: endpoint.to_owned(), allowed: allow_networks.to_vec() }
    }

    /// Judges one address.
    ///
    /// # Errors
    /// The network that holds it.
    pub fn vet(&self, address: IpAddr) -> Result<(), RefusedAddress> {
        let judged = embedded(address);
        let Some((network, purpose)) = special_purpose(judged) else { return Ok(()) };
        if self.allowed.iter().any(|allowed| allowed.contains(&judged) || allowed.contains(&address)) {
            return Ok(());
        }
        Err(RefusedAddress { address, network, purpose, endpoint: self.endpoint.clone() })
    }

    /// Judges all addresses of a name: one refused refuses them all.
    ///
    /// # Errors
    /// The first refused one.
    pub fn vet_all(&self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, RefusedAddress> {
        addresses.iter().try_for_each(|address| self.vet(address.ip()))?;
        Ok(addresses)
    }

    /// Judges a URL as far as it can be without resolving its name, and parses it.
    ///
    /// # Errors
    /// Why it is not used.
    pub fn vet_url(&self, url: &str, allow_http: bool) -> Result<Url, RefusedUrl> {
        let url = Url::parse(url).map_err(|_| RefusedUrl::Form)?;
        match url.scheme() {
            "https" => {}
            "http" if allow_http => {}
            scheme => return Err(RefusedUrl::Scheme(scheme.to_owned())),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RefusedUrl::Credentials);
        }
        // The parser has turned every spelling (0x7f.1, 2130706433, 127.1, full-width digits) into an address.
        match url.host().ok_or(RefusedUrl::Form)? {
            Host::Ipv4(address) => self.vet(address.into())?,
            Host::Ipv6(address) => self.vet(address.into())?,
            Host::Domain(_) => {}
        }
        Ok(url)
    }
}

/// The IPv4 address inside an IPv4-mapped or NAT64 one; any other as it is.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [.., a, b, c, d] = v6.octets();
    if v6.to_ipv4_mapped().is_some() || NAT64.contains(&v6) { Ipv4Addr::new(a, b, c, d).into() } else { address }
}

fn special_purpose(address: IpAddr) -> Option<(IpNet, &'static str)> {
    match address {
        IpAddr::V4(v4) => {
            let found = REFUSED_V4.iter().find(|(network, _)| network.contains(&v4));
            found.map(|(network, purpose)| (IpNet::V4(*network), *purpose))
        }
        IpAddr::V6(v6) => {
            let found = REFUSED_V6.iter().find(|(network, _)| network.contains(&v6));
            found.map(|(network, purpose)| (IpNet::V6(*network), *purpose))
        }
    }
}

/// Why a name gave no address to dial.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The look-up failed.
    #[error("the name {name} cannot be resolved")]
    LookUp {
        /// The name.
        name: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The look-up gave nothing.
    #[error("the name {0} has no address")]
    Empty(String),
    /// One of the addresses is refused.
    #[error("the name {name} is not dialled: {refused}")]
    Refused {
        /// The name.
        name: String,
        /// The address and the setting that would allow it.
        refused: RefusedAddress,
    },
}

/// The client's resolver: the system's, with every address vetted.
#[derive(Clone)]
pub struct VettedResolver {
    filter: AddressFilter,
    names: Names,
}

#[derive(Clone)]
enum Names {
    System,
    /// Answers of a name server, one per look-up, the last for ever.
    #[cfg(test)]
    Scripted(Arc<std::sync::Mutex<Vec<Vec<IpAddr>>>>),
}

impl VettedResolver {
    /// Resolves by the system, vets by `filter`.
    #[must_use]
    pub fn new(filter: AddressFilter) -> Arc<Self> {
        Arc::new(Self { filter, names: Names::System })
    }

    #[cfg(test)]
    pub(super) fn scripted(filter: AddressFilter, mut answers: Vec<Vec<IpAddr>>) -> Arc<Self> {
        answers.reverse();
        Arc::new(Self { filter, names: Names::Scripted(Arc::new(std::sync::Mutex::new(answers))) })
    }

    /// All addresses of `name`, each vetted; the port is 0, which stands for the URL's.
    ///
    /// # Errors
    /// Why there is none to dial.
    pub async fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        let found = match &self.names {
            Names::System => match tokio::net::lookup_host((name, 0)).await {
                Ok(found) => found.collect::<Vec<_>>(),
                Err(source) => return Err(ResolveError::LookUp { name: name.to_owned(), source }),
            },
            #[cfg(test)]
            Names::Scripted(answers) => {
                let mut answers = answers.lock().unwrap();
                let answer = if answers.len() > 1 { answers.pop() } else { answers.last().cloned() };
                answer.unwrap_or_default().into_iter().map(|ip| SocketAddr::new(ip, 0)).collect()
            }
        };
        if found.is_empty() {
            return Err(ResolveError::Empty(name.to_owned()));
        }
        self.filter.vet_all(found).map_err(|refused| ResolveError::Refused { name: name.to_owned(), refused })
    }
}

impl Resolve for VettedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let addresses: Addrs = Box::new(resolver.addresses(name.as_str()).await?.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(allowed: &[&str]) -> AddressFilter {
        AddressFilter::new("analytics", &allowed.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>())
    }

    fn refused(address: &str) -> bool {
        filter(&[]).vet(address.parse().unwrap()).is_err()
    }

    /// The list as the facts have it, written down a second time.
    const V4: [&str; 15] = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    ];
    const V6: [&str; 11] = [
        "::/8",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    ];

    #[test]
    fn every_ipv4_network_is_refused_from_its_first_to_its_last_address_and_not_beyond() {
        let networks = V4.map(|text| text.parse::<Ipv4Net>().unwrap());
        let listed = |address: Ipv4Addr| networks.iter().any(|network| network.contains(&address));
        for network in networks {
            let (first, last) = (u32::from(network.network()), u32::from(network.broadcast()));
            for edge in [first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                let address = Ipv4Addr::from(edge);
                assert_eq!(refused(&address.to_string()), listed(address), "{address} at the edge of {network}");
            }
            assert!(refused(&Ipv4Addr::from(first).to_string()) && refused(&Ipv4Addr::from(last).to_string()));
        }
        for (outside, inside) in [
            ("1.0.0.0", "0.255.255.255"),
            ("9.255.255.255", "10.0.0.0"),
            ("11.0.0.0", "10.255.255.255"),
            ("100.63.255.255", "100.64.0.0"),
            ("100.128.0.0", "100.127.255.255"),
            ("126.255.255.255", "127.0.0.0"),
            ("128.0.0.0", "127.255.255.255"),
            ("169.253.255.255", "169.254.169.254"),
            ("169.255.0.0", "169.254.0.0"),
            ("172.15.255.255", "172.16.0.0"),
            ("172.32.0.0", "172.31.255.255"),
            ("192.0.1.0", "192.0.0.255"),
            ("192.0.3.0", "192.0.2.255"),
            ("192.167.255.255", "192.168.0.0"),
            ("192.169.0.0", "192.168.255.255"),
            ("198.17.255.255", "198.18.0.0"),
            ("198.20.0.0", "198.19.255.255"),
            ("223.255.255.255", "224.0.0.0"),
            ("8.8.8.8", "255.255.255.255"),
        ] {
            assert!(!refused(outside), "{outside} is an ordinary address");
            assert!(refused(inside), "{inside} is special");
        }
    }

    #[test]
    fn every_ipv6_network_is_refused_from_its_first_to_its_last_address_and_not_beyond() {
        let networks = V6.map(|text| text.parse::<Ipv6Net>().unwrap());
        for network in networks {
            let (first, last) = (u128::from(network.network()), u128::from(network.broadcast()));
            for edge in [first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                let address = Ipv6Addr::from(edge);
                let listed = networks.iter().any(|network| network.contains(&address));
                assert_eq!(refused(&address.to_string()), listed, "{address} at the edge of {network}");
            }
        }
        for outside in [
            "100:0:0:1::",
            "2001:200::",
            "2001:db7:ffff::",
            "2003::",
            "3ffe:ffff::",
            "3fff:1000::",
            "5eff:ffff::",
            "5f01::",
            "fbff:ffff::",
            "fe00::",
            "fe7f:ffff::",
            "2606:4700::1111",
        ] {
            assert!(!refused(outside), "{outside} is an ordinary address");
        }
        for inside in [
            "::",
            "::1",
            "ff:ffff::",
            "2001:1ff:ffff::",
            "3fff:fff:ffff::",
            "fdff::1",
            "fe80::1",
            "febf::",
            "feff::",
            "ff02::1",
            "2002:0808:0808::",
        ] {
            assert!(refused(inside), "{inside} is special");
        }
    }

    #[test]
    fn an_embedded_ipv4_address_gets_its_own_verdict() {
        for network in V4.map(|text| text.parse::<Ipv4Net>().unwrap()) {
            for inner in [network.network(), network.broadcast()] {
                for outer in [format!("::ffff:{inner}"), format!("64:ff9b::{inner}")] {
                    assert!(refused(&outer), "{outer}");
                }
            }
        }
        assert!(!refused("::ffff:8.8.8.8") && !refused("64:ff9b::8.8.8.8"));
        // Other forms that only look like an embedding.
        for odd in [
            "::8.8.8.8",
            "::fffe:8.8.8.8",
            "::ffff:0:8.8.8.8",
            "64:ff9b:1::8.8.8.8",
            "64:ff9b::1:0:0",
            "64:ff9b:ffff::",
            "64:ff9a::8.8.8.8",
        ] {
            assert!(refused(odd), "{odd}");
        }
    }

    #[test]
    fn exceptions_are_made_by_network_and_for_nothing_else() {
        let filter = filter(&["127.0.0.0/8", "10.1.0.0/16", "fd00:1::/32"]);
        for allowed in ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::10.1.2.3", "10.1.255.255", "fd00:1::5"] {
            assert!(filter.vet(allowed.parse().unwrap()).is_ok(), "{allowed}");
        }
        for refused in ["10.2.0.0", "::1", "fd00:2::1", "169.254.169.254", "::ffff:10.0.255.255"] {
            assert!(filter.vet(refused.parse().unwrap()).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_refusal_names_the_address_and_the_setting() {
        let text = filter(&[]).vet("169.254.169.254".parse().unwrap()).expect_err("refused").to_string();
        assert!(text.contains("169.254.169.254") && text.contains("169.254.0.0/16"), "{text}");
        assert!(text.contains("allow_networks in [endpoints.analytics]"), "{text}");
    }

    #[test]
    fn one_refused_address_of_a_name_refuses_all() {
        let all = |text: &[&str]| text.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect::<Vec<_>>();
        let good = all(&["8.8.8.8", "2606:4700::1111"]);
        assert_eq!(filter(&[]).vet_all(good.clone()).unwrap(), good);
        let error = filter(&[]).vet_all(all(&["8.8.8.8", "10.0.0.7"])).expect_err("refused");
        assert_eq!(error.address, "10.0.0.7".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn every_spelling_of_a_literal_address_is_judged() {
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "127.0.0.01",
            "１２７.0.0.1",
            "%31%32%37.0.0.1",
            "127。0。0。1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
            "0",
            "[::]",
            "169.254.169.254",
            "0xa9fea9fe",
        ] {
            let refusal = filter(&[]).vet_url(&format!("https://{host}/hook"), false);
            assert!(matches!(refusal, Err(RefusedUrl::Address(_))), "{host}: {refusal:?}");
        }
        assert!(filter(&["127.0.0.0/8"]).vet_url("https://0x7f.1/", false).is_ok());
        assert!(filter(&[]).vet_url("https://hooks.example.com/t0ken", false).is_ok());
    }

    #[test]
    fn urls_with_credentials_or_another_scheme_are_refused_without_showing_them() {
        for (url, said) in [
            ("https://user:hunter2@example.com/", "user name or password"),
            ("https://hunter2@example.com/", "user name or password"),
            ("http://example.com/hunter2", "allow_http"),
            ("ftp://example.com/hunter2", "ftp://"),
            ("file:///hunter2", "file://"),
            ("hunter2", "not an address"),
            ("https://", "not an address"),
        ] {
            let text = filter(&[]).vet_url(url, false).expect_err(url).to_string();
            assert!(text.contains(said) && !text.contains("hunter2"), "{url}: {text}");
        }
        assert!(filter(&[]).vet_url("http://example.com/", true).is_ok());
    }

    #[tokio::test]
    async fn a_name_that_answers_differently_the_second_time_is_vetted_each_time() {
        let answers = vec![vec!["8.8.8.8".parse().unwrap()], vec!["127.0.0.1".parse().unwrap()], vec![]];
        let resolver = VettedResolver::scripted(filter(&[]), answers);
        assert_eq!(resolver.addresses("evil.example").await.unwrap(), ["8.8.8.8:0".parse().unwrap()]);
        let error = resolver.addresses("evil.example").await.expect_err("refused");
        assert!(matches!(error, ResolveError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("evil.example") && error.to_string().contains("127.0.0.1"));
        assert!(matches!(resolver.addresses("evil.example").await, Err(ResolveError::Empty(_))));
    }

    #[tokio::test]
    async fn the_name_localhost_is_refused_by_its_address() {
        let error = VettedResolver::new(filter(&[])).addresses("localhost").await.expect_err("refused");
        assert!(matches!(error, ResolveError::Refused { .. }), "{error}");
        assert!(VettedResolver::new(filter(&["127.0.0.0/8", "::1/128"])).addresses("localhost").await.is_ok());
    }
}
