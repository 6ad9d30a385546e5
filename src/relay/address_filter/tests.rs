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

/// Every way to write an IPv4 address into a URL.
fn spellings(address: Ipv4Addr) -> Vec<String> {
    let [a, b, c, d] = address.octets();
    let number = u32::from(address);
    let (high, low) = (number >> 16, number & 0xffff);
    vec![
        format!("{a}.{b}.{c}.{d}"),
        format!("{a}.{b}.{c}.{d}."),
        format!("{number}"),
        format!("{number:#x}"),
        format!("0X{number:X}"),
        format!("0{number:o}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
        format!("{a}.{}", number & 0xff_ffff),
        format!("{a:#x}.0{b:o}.{low}"),
        format!("[::ffff:{address}]"),
        format!("[::FFFF:{high:x}:{low:x}]"),
        format!("[0:0:0:0:0:ffff:{high:04X}:{low:04X}]"),
        format!("[64:ff9b::{address}]"),
        format!("[0064:FF9B:0:0:0:0:{high:x}:{low:x}]"),
    ]
}

#[test]
fn the_edges_of_every_network_get_the_same_verdict_in_every_spelling() {
    let (v4, v6) = (V4.map(|text| text.parse::<Ipv4Net>().unwrap()), V6.map(|text| text.parse::<Ipv6Net>().unwrap()));
    let verdict = |host: &str| match filter(&[]).vet_url(&format!("https://{host}/hook"), false) {
        Ok(_) => false,
        Err(RefusedUrl::Address(_)) => true,
        Err(other) => panic!("{host}: {other}"),
    };
    for network in v4 {
        let (first, last) = (u32::from(network.network()), u32::from(network.broadcast()));
        for edge in [first.wrapping_sub(1), first, last, last.wrapping_add(1)].map(Ipv4Addr::from) {
            let listed = v4.iter().any(|network| network.contains(&edge));
            for host in spellings(edge) {
                assert_eq!(verdict(&host), listed, "{host} is {edge}, at the edge of {network}");
            }
        }
    }
    for network in v6 {
        let (first, last) = (u128::from(network.network()), u128::from(network.broadcast()));
        for edge in [first.wrapping_sub(1), first, last, last.wrapping_add(1)].map(Ipv6Addr::from) {
            let listed = v6.iter().any(|network| network.contains(&edge));
            let full = edge.segments().map(|segment| format!("{segment:04X}")).join(":");
            for host in [format!("[{edge}]"), format!("[{full}]")] {
                assert_eq!(verdict(&host), listed, "{host}, at the edge of {network}");
            }
        }
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
