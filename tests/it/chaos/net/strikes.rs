//! The cuts: a line for each kind of link and one for the nodes, side by side, each when its next one is due.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;

use super::cuts::{Firewall, Lost};
use super::field::{Field, Node};
use crate::chaos::plan::{Due, Fault, Whom};
use crate::chaos::strikes::{due, hold};
use crate::chaos::traffic::now_ms;
use crate::chaos::{Process, Run};
use crate::world::{LIMIT, eventually};

/// Shorter than what the nodes need to notice each other's silence, longer than what the queues' leaders do.
const BRIEFLY: Duration = Duration::from_secs(2);

/// A kind of link, and for how many seconds it is cut.
pub struct Links {
    whom: Whom,
    seconds: RangeInclusive<u32>,
    peers: fn(&Field) -> Vec<IpAddr>,
    /// Something is sent over it all the time, by an idle worker too.
    is_busy: bool,
}

/// Between a worker and all nodes of RabbitMQ: shorter and longer than two heartbeats of 3 s.
pub const BROKER: Links = Links {
    whom: Whom::BrokerLinks,
    seconds: 4..=12,
    peers: |field| field.nodes.iter().map(|node| node.address).collect(),
    is_busy: true,
};
/// Between a worker and Redis.
pub const REDIS: Links =
    Links { whom: Whom::RedisLinks, seconds: 3..=8, peers: |field| vec![field.redis], is_busy: true };
/// Between a worker and the API.
pub const API: Links =
    Links { whom: Whom::ApiLinks, seconds: 3..=8, peers: |field| vec![field.network.gateway], is_busy: false };

/// A worker in a container.
pub struct Worker {
    pub process: Process,
    firewall: Firewall,
}

impl Worker {
    /// Starts one and waits until it has found RabbitMQ.
    pub async fn start(run: &Run, field: &Field, name: &str) -> Worker {
        let process = run.world.spawn_as(name, |settings, log| field.worker(name, settings, log));
        process.logs("connected to RabbitMQ").await;
        Worker { process, firewall: Firewall { container: field.network.container(name) } }
    }
}

/// Cuts links of a kind.
pub async fn links(run: &Run, field: &Field, workers: &[Worker; 2], links: &Links) {
    let mut outcomes = run.told();
    let peers = (links.peers)(field);
    for strike in cuts(run, links.whom) {
        if due(&strike, &mut outcomes).await.is_none() {
            return;
        }
        let (lost, length) = (lost(&strike), length(&strike, &links.seconds));
        let struck = match strike.fault {
            Fault::AllFromBroker | Fault::AllFromRedis | Fault::AllFromApi => &workers[..],
            _ => &workers[usize::from(strike.draw % 2 == 0)..][..1],
        };
        let (from, from_ms) = (Instant::now(), now_ms());
        for worker in struck {
            worker.firewall.cut(&peers, lost).await;
        }
        hold(length).await;
        let mut packets = 0;
        for worker in struck {
            packets += worker.firewall.heal(&peers, lost).await;
        }
        run.log.note(strike.fault, from);
        let names = struck.iter().map(|worker| worker.firewall.container.as_str()).collect::<Vec<_>>();
        eprintln!(
            "{:?} of {names:?} for {length:?}, {from_ms} to {}, lost: {lost:?}, {packets} packets",
            strike.fault,
            now_ms()
        );
        if packets == 0 && links.is_busy {
            run.log.complain(format!("{:?}: a cut that nothing ran into", strike.fault));
        }
    }
}

/// Cuts nodes off from their neighbours.
pub async fn nodes(run: &Run, field: &Field) {
    let mut outcomes = run.told();
    for strike in cuts(run, Whom::Nodes) {
        if due(&strike, &mut outcomes).await.is_none() {
            return;
        }
        let node = &field.nodes[usize::try_from(strike.draw).unwrap() % field.nodes.len()];
        let (neighbours, from) = (field.neighbours(node), Instant::now());
        node.firewall.cut(&neighbours, Lost::Both).await;
        if strike.fault == Fault::NodeBriefly {
            hold(BRIEFLY).await;
        } else {
            eventually(LIMIT, "a node in the minority that stops itself", async || node.refuses().await).await;
            hold(length(&strike, &(1..=5))).await;
        }
        let packets = node.firewall.heal(&neighbours, Lost::Both).await;
        run.log.note(strike.fault, from);
        let (name, length) = (node.name, from.elapsed());
        eprintln!("{:?} of {name} for {length:?}, to {}, {packets} packets", strike.fault, now_ms());
        if packets == 0 {
            run.log.complain(format!("{:?}: a cut that nothing ran into", strike.fault));
        }
        is_back(node).await;
    }
}

async fn is_back(node: &Node) {
    eventually(LIMIT, "a node that is in the cluster again", async || node.answers().await).await;
}

/// Opens all links, and waits until every node answers.
pub async fn heal_everything(field: &Field, workers: &[Worker]) {
    let all = workers.iter().map(|worker| &worker.firewall).chain(field.nodes.iter().map(|node| &node.firewall));
    for firewall in all {
        firewall.open().await;
    }
    for node in &field.nodes {
        is_back(node).await;
    }
}

/// The cuts of a line; none where `CHAOS_CUTS` names others, as one does to find out what a violation comes from.
fn cuts(run: &Run, whom: Whom) -> Vec<Due> {
    let wanted = std::env::var("CHAOS_CUTS").ok().filter(|names| !names.is_empty());
    let name = format!("{whom:?}").to_lowercase();
    let is_wanted = wanted.is_none_or(|names| names.split(',').any(|wanted| name.starts_with(wanted)));
    if is_wanted { run.plan.faults(whom) } else { Vec::new() }
}

/// Half of the cuts lose both directions, the others one.
fn lost(strike: &Due) -> Lost {
    match strike.draw / 2 % 4 {
        0 => Lost::Incoming,
        1 => Lost::Outgoing,
        _ => Lost::Both,
    }
}

fn length(strike: &Due, seconds: &RangeInclusive<u32>) -> Duration {
    let range = seconds.end() - seconds.start() + 1;
    Duration::from_secs(u64::from(seconds.start() + strike.draw / 8 % range))
}
