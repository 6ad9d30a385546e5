//! Which faults strike, and when: drawn from the seed, like the load. A fault is due when so many jobs have an
//! outcome, not at a time, so that it strikes in the middle of work on a fast machine and on a slow one.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// A worker stopped so long has lost its lease (10 s) and its connection (the heartbeat of the suite is 3 s).
pub const PAST_LEASE: Duration = Duration::from_secs(13);

/// What happens to somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A worker gets SIGKILL.
    WorkerKilled,
    /// A worker gets SIGTERM.
    WorkerTerminated,
    /// A worker gets SIGSTOP, and SIGCONT a moment later.
    WorkerPaused,
    /// The same, past its lease and its heartbeat.
    WorkerSuspended,
    /// The broker gets SIGKILL and is started at once.
    BrokerKilled,
    /// The same, but it stays away for a while.
    BrokerAway,
    /// Redis gets SIGKILL and is started at once, with its data.
    RedisKilled,
    /// Redis forgets everything.
    RedisWiped,
    /// Redis is killed, stays away for a while, and has forgotten everything.
    RedisAway,
    /// The API answers 429 to everything for a while.
    Throttled,
    /// The API ends all tokens.
    TokenRevoked,
    /// The API takes half a second for everything, for a while.
    Slow,
    /// What goes between one worker and RabbitMQ is lost for a while.
    OneFromBroker,
    /// The same, for both workers.
    AllFromBroker,
    /// What goes between one worker and Redis is lost for a while.
    OneFromRedis,
    /// The same, for both workers.
    AllFromRedis,
    /// What goes between one worker and the API is lost for a while.
    OneFromApi,
    /// The same, for both workers.
    AllFromApi,
    /// A node of the cluster is cut off from the others, for less than they need to notice.
    NodeBriefly,
    /// A node of the cluster is cut off from the others until it has stopped itself.
    NodeInMinority,
}

/// Faults, how many of each at full scale, and whom they strike.
type Kinds = [(Fault, usize, Whom)];

/// What strikes processes.
const PROCESSES: &Kinds = &[
    (Fault::WorkerKilled, 100, Whom::Workers),
    (Fault::WorkerTerminated, 10, Whom::Workers),
    (Fault::WorkerPaused, 10, Whom::Workers),
    (Fault::WorkerSuspended, 5, Whom::Workers),
    (Fault::BrokerKilled, 17, Whom::Broker),
    (Fault::BrokerAway, 3, Whom::Broker),
    (Fault::RedisKilled, 10, Whom::Redis),
    (Fault::RedisWiped, 10, Whom::Redis),
    (Fault::RedisAway, 10, Whom::Redis),
    (Fault::Throttled, 6, Whom::Api),
    (Fault::TokenRevoked, 10, Whom::Api),
    (Fault::Slow, 4, Whom::Api),
];
const PROCESSES_JOBS: usize = 30_000;

/// What strikes networks.
const NETWORKS: &Kinds = &[
    (Fault::OneFromBroker, 6, Whom::BrokerLinks),
    (Fault::AllFromBroker, 2, Whom::BrokerLinks),
    (Fault::OneFromRedis, 6, Whom::RedisLinks),
    (Fault::AllFromRedis, 3, Whom::RedisLinks),
    (Fault::OneFromApi, 6, Whom::ApiLinks),
    (Fault::AllFromApi, 3, Whom::ApiLinks),
    (Fault::NodeBriefly, 3, Whom::Nodes),
    (Fault::NodeInMinority, 6, Whom::Nodes),
];
const NETWORKS_JOBS: usize = 8_000;

/// Whom a fault strikes; each has a line of faults of its own, and the lines run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    Workers,
    Broker,
    Redis,
    Api,
    BrokerLinks,
    RedisLinks,
    ApiLinks,
    Nodes,
}

/// One fault, due when so many jobs have an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub after: usize,
    pub fault: Fault,
    /// Between the fact that it is due and the strike, so that it does not always strike just after an outcome.
    pub wait: Duration,
    /// A draw for what the fault leaves open.
    pub draw: u32,
}

/// A whole run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub scale: usize,
    pub jobs: usize,
    kinds: &'static Kinds,
}

impl Plan {
    /// Processes are struck, at `scale` percent.
    pub fn of_processes(seed: u64, scale: usize) -> Plan {
        Plan { seed, scale, jobs: PROCESSES_JOBS * scale / 100, kinds: PROCESSES }
    }

    /// Networks are struck, at `scale` percent.
    pub fn of_networks(seed: u64, scale: usize) -> Plan {
        Plan { seed, scale, jobs: NETWORKS_JOBS * scale / 100, kinds: NETWORKS }
    }

    /// The faults that strike somebody, in order.
    pub fn faults(&self, whom: Whom) -> Vec<Due> {
        let mut dice = StdRng::seed_from_u64(self.seed ^ (0xfa017 + whom as u64));
        let of_whom = self.kinds.iter().filter(|(_, _, struck)| *struck == whom);
        let mut faults: Vec<Fault> = of_whom
            .flat_map(|(fault, count, _)| std::iter::repeat_n(*fault, (count * self.scale).div_ceil(100)))
            .collect();
        faults.shuffle(&mut dice);
        let count = faults.len();
        // The first jobs start the system, the last ones drain it.
        let slot = self.jobs * 95 / 100 / count.max(1);
        let due = |(at, fault)| Due {
            after: at * slot + dice.random_range(slot / 4..slot.max(slot / 4 + 1)),
            fault,
            wait: Duration::from_millis(dice.random_range(0..200)),
            draw: dice.random(),
        };
        faults.into_iter().enumerate().map(due).collect()
    }
}

#[test]
fn the_full_run_has_the_faults_that_it_promises_and_the_short_one_has_each_once_at_least() {
    let count = |plan: &Plan, whom, fault| plan.faults(whom).iter().filter(|due| due.fault == fault).count();
    let (full, short) = (Plan::of_processes(1, 100), Plan::of_processes(1, 3));
    assert_eq!(count(&full, Whom::Workers, Fault::WorkerKilled), 100);
    assert_eq!(full.faults(Whom::Broker).len(), 20);
    for &(fault, _, whom) in PROCESSES {
        assert!(count(&short, whom, fault) >= 1, "{fault:?}");
    }
    let networks = Plan::of_networks(1, 100);
    for &(fault, times, whom) in NETWORKS {
        assert_eq!(count(&networks, whom, fault), times, "{fault:?}");
    }
    for whom in [Whom::Workers, Whom::Broker, Whom::Redis, Whom::Api] {
        let faults = full.faults(whom);
        assert_eq!(faults, Plan::of_processes(1, 100).faults(whom), "the seed decides");
        assert!(faults.is_sorted_by_key(|due| due.after) && faults.iter().all(|due| due.after < full.jobs));
    }
}
