//! The containers: three nodes of RabbitMQ that are one cluster, a Redis, and what a worker needs to be one too.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use context_injector::servers::watched::{Scratch, Spec, Watched};
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;

use super::cuts::Firewall;
use super::docker::{Network, docker};
use crate::world::{LIMIT, eventually};

/// All nodes by one name, as a worker in the network finds them.
pub const AMQP_URL: &str = "amqp://guest:guest@rabbitmq:5672/%2f";
/// What iptables runs in, and the workers (scripts/containers/firewall.Dockerfile).
const FIREWALL_IMAGE: &str = "context-injector-firewall:trixie";
const BINARY: &str = env!("CARGO_BIN_EXE_context-injector");
/// One handshake may hang on a node that has bound its port and is not up yet.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
const NODES: [&str; 3] = ["node1", "node2", "node3"];

/// A node notices within 4 to 6 s that another one is silent, not within a minute as by default.
const NODE_SETTINGS: &str = "\
loopback_users.guest = false
log.console = true
net_ticktime = 5
cluster_partition_handling = pause_minority
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = rabbit@node1
cluster_formation.classic_config.nodes.2 = rabbit@node2
cluster_formation.classic_config.nodes.3 = rabbit@node3
";
/// Nor does it try for 7 s in vain, at each neighbour in turn, before it does what it has to do about that.
const NODE_ARGUMENTS: &str = "-kernel net_setuptime 1";

/// Everything that is there before the workers are. What is first in it goes first.
pub struct Field {
    pub nodes: Vec<Node>,
    pub redis: IpAddr,
    _redis: Watched,
    pub network: Network,
    _settings: Scratch,
}

/// A node of RabbitMQ.
pub struct Node {
    pub name: &'static str,
    pub address: IpAddr,
    pub firewall: Firewall,
    container: String,
    _firewall: Watched,
    _process: Watched,
}

impl Field {
    /// Starts everything, and waits until the cluster is whole; logs go into the directory.
    pub async fn build(logs: &Path) -> Field {
        let network = Network::create().await;
        let settings = Scratch::new("chaos-net").unwrap();
        let file = settings.path().join("rabbitmq.conf");
        std::fs::write(&file, NODE_SETTINGS).unwrap();
        let log = |name: &str| {
            let path = logs.join(format!("{name}.log"));
            let _ = std::fs::remove_file(&path);
            path
        };
        let redis = Watched::spawn(&network.spec("redis", &[], &[&image("REDIS_IMAGE", "redis:8")], log("redis")));
        let redis = redis.unwrap();
        let processes = NODES.map(|name| Watched::spawn(&node(&network, name, &file, log(name))).unwrap());
        let mut nodes = Vec::new();
        for (name, process) in NODES.into_iter().zip(processes) {
            nodes.push(Node::found(&network, name, process).await);
        }
        for node in &nodes {
            eventually(LIMIT, &format!("an AMQP handshake with {}", node.name), async || node.answers().await).await;
        }
        docker(&["exec", &nodes[0].container, "rabbitmqctl", "await_online_nodes", "3"]).await.unwrap();
        let address = network.address("redis").await;
        Field { nodes, redis: address, _redis: redis, network, _settings: settings }
    }

    /// The address of Redis.
    pub fn redis_url(&self) -> String {
        format!("redis://{}:6379/", self.redis)
    }

    /// The other nodes' addresses.
    pub fn neighbours(&self, of: &Node) -> Vec<IpAddr> {
        self.nodes.iter().map(|node| node.address).filter(|address| *address != of.address).collect()
    }

    /// A worker in a container in which iptables can run too.
    pub fn worker(&self, name: &str, settings: &Path, log: PathBuf) -> Spec {
        let (program, settings) = (format!("{BINARY}:/context-injector:ro"), mount(settings, "/settings.toml"));
        let options = ["--cap-add", "NET_ADMIN", "--env", "NO_COLOR=1", "--volume", &program, "--volume", &settings];
        let command = [FIREWALL_IMAGE, "/context-injector", "--config", "/settings.toml", "worker"];
        self.network.spec(name, &options, &command, log)
    }

    /// A queue that was declared before the cluster was whole would have one member and no majority to lose.
    pub async fn every_queue_has_a_member_on_each_node(&self) {
        let list = ["rabbitmqctl", "list_queues", "name", "members", "--quiet", "--formatter", "json"];
        let listing = docker(&[&["exec", &self.nodes[0].container], &list[..]].concat()).await.unwrap();
        let queues: Vec<Value> = serde_json::from_str(&listing).expect(&listing);
        assert!(!queues.is_empty(), "there are queues");
        for queue in queues {
            assert_eq!(queue["members"].as_array().map(Vec::len), Some(NODES.len()), "{queue}");
        }
    }
}

impl Node {
    async fn found(network: &Network, name: &'static str, process: Watched) -> Node {
        let address = network.address(name).await;
        let (container, firewall) = (network.container(name), format!("{name}-firewall"));
        let shared = format!("container:{container}");
        let options = ["--cap-add", "NET_ADMIN", "--network", &shared];
        let spec = network.outside(&firewall, &options, &[FIREWALL_IMAGE], process.log().to_owned());
        let watched = Watched::spawn(&spec).unwrap();
        let firewall = Firewall { container: network.container(&firewall) };
        Node { name, address, firewall, container, _firewall: watched, _process: process }
    }

    /// Its address as it is reached from this machine.
    pub fn amqp_url(&self) -> String {
        format!("amqp://guest:guest@{}:5672/%2f", self.address)
    }

    /// Whether it takes part in the cluster: a node that has stopped itself listens to nobody.
    pub async fn answers(&self) -> Option<()> {
        let url = self.amqp_url();
        let handshake = Connection::connect(&url, ConnectionProperties::default());
        tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await.ok()?.ok().map(drop)
    }

    /// Whether it has stopped itself.
    pub async fn refuses(&self) -> Option<()> {
        tokio::net::TcpStream::connect((self.address, 5672)).await.err().map(drop)
    }
}

fn node(network: &Network, name: &str, settings: &Path, log: PathBuf) -> Spec {
    let settings = mount(settings, "/etc/rabbitmq/conf.d/90-cluster.conf");
    let cookie = format!("RABBITMQ_ERLANG_COOKIE={}", network.container("cookie"));
    let arguments = format!("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS={NODE_ARGUMENTS}");
    let alias = ["--network-alias", "rabbitmq", "--volume", &settings, "--env", &cookie, "--env", &arguments];
    network.spec(name, &alias, &[&image("RABBITMQ_IMAGE", "rabbitmq:4")], log)
}

fn mount(file: &Path, at: &str) -> String {
    format!("{}:{at}:ro", file.display())
}

fn image(variable: &str, usual: &str) -> String {
    std::env::var(variable).ok().filter(|image| !image.is_empty()).unwrap_or_else(|| usual.to_owned())
}
