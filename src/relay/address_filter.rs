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
mod tests;
