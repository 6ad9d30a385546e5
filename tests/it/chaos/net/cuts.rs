//! A cut: packets between a container and some addresses are dropped in the container's own network, by iptables.
//!
//! Taking the container off a docker network would tell its kernel that the interface is gone, and give it another
//! address afterwards. Dropping tells nobody anything.

use std::net::IpAddr;

use super::docker::docker;

/// The directions in which packets are lost, seen from who is cut off.
#[derive(Debug, Clone, Copy)]
pub enum Lost {
    Both,
    Incoming,
    Outgoing,
}

/// Where iptables runs: in a container that shares the network of the one that is to be cut off, or in that itself.
#[derive(Debug, Clone)]
pub struct Firewall {
    pub container: String,
}

impl Firewall {
    /// Drops what goes between here and the addresses.
    pub async fn cut(&self, from: &[IpAddr], lost: Lost) {
        self.iptables(&rules("-A", from, lost)).await;
    }

    /// Drops it no longer, and tells how many packets were.
    pub async fn heal(&self, from: &[IpAddr], lost: Lost) -> u64 {
        let listing = self.iptables("iptables -w -vnxL").await;
        self.iptables(&rules("-D", from, lost)).await;
        dropped(&listing, from)
    }

    /// Drops nothing any more.
    pub async fn open(&self) {
        self.iptables("iptables -w -F").await;
    }

    async fn iptables(&self, script: &str) -> String {
        docker(&["exec", &self.container, "sh", "-ec", script]).await.unwrap()
    }
}

fn rules(action: &str, from: &[IpAddr], lost: Lost) -> String {
    let incoming = from.iter().map(|address| format!("iptables -w {action} INPUT -s {address} -j DROP\n"));
    let outgoing = from.iter().map(|address| format!("iptables -w {action} OUTPUT -d {address} -j DROP\n"));
    match lost {
        Lost::Both => incoming.chain(outgoing).collect(),
        Lost::Incoming => incoming.collect(),
        Lost::Outgoing => outgoing.collect(),
    }
}

/// The sum of the packets that met a rule about one of the addresses.
fn dropped(listing: &str, from: &[IpAddr]) -> u64 {
    let names: Vec<String> = from.iter().map(IpAddr::to_string).collect();
    let rules = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let about = rules.filter(|rule| rule.iter().any(|word| names.iter().any(|name| name == word)));
    about.filter_map(|rule| rule.first()?.parse::<u64>().ok()).sum()
}

#[test]
fn packets_are_counted_by_the_addresses_that_they_were_dropped_for() {
    let listing = "Chain INPUT (policy ACCEPT 9 packets, 99 bytes)
    pkts      bytes target     prot opt in     out     source               destination
      12     1234 DROP       0    --  *      *       172.18.0.3           0.0.0.0/0
       3      300 DROP       0    --  *      *       172.18.0.31          0.0.0.0/0

Chain OUTPUT (policy ACCEPT 9 packets, 99 bytes)
       5      500 DROP       0    --  *      *       0.0.0.0/0            172.18.0.3";
    assert_eq!(dropped(listing, &["172.18.0.3".parse().unwrap()]), 17);
    let rules = rules("-A", &["172.18.0.3".parse().unwrap()], Lost::Incoming);
    assert_eq!(rules, "iptables -w -A INPUT -s 172.18.0.3 -j DROP\n");
}
