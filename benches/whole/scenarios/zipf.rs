//! Few conversations with many jobs, many with few: what waits for one is folded. The floor cannot fold; it waits for
//! its lease and reads before each write.

use super::rounds;
use super::throughput::{Run, Samples};
use crate::load::{Kind, zipf};
use crate::peer::{First, Peer};
use crate::report::Report;
use crate::stage::Stage;

const JOBS: usize = 16_000;
const CONVERSATIONS: usize = 2_000;
const IN_FLIGHT: usize = 256;
const ROUNDS: usize = 3;

pub async fn run(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let variants = [
        ("zipf, sets", Kind::Sets, &[Peer::Floor, Peer::Worker][..]),
        ("zipf, increments", Kind::Increment, &[Peer::Worker][..]),
    ];
    for (name, kind, peers) in variants {
        let jobs = zipf(JOBS, CONVERSATIONS, kind);
        let run = Run { jobs: &jobs, in_flight: IN_FLIGHT, first: First::Read };
        let mut samples = Samples::default();
        for _ in 0..rounds(ROUNDS) {
            samples.take(&run, peers, stage).await?;
        }
        samples.tell(name, report);
    }
    Ok(())
}
