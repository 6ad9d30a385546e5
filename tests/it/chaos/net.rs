//! Networks are cut while everybody works: a worker from RabbitMQ, from Redis, from the API, a node of RabbitMQ from
//! its two neighbours. The load, the foreign writer and the checker are those of the whole suite.
//!
//! Everything that talks is a container of its own ([`field`]), but the API, the producer and the subscriber, which
//! are in this process. A cut drops packets, so that nobody is told: connections stay open and fall silent, as they
//! do behind a broken switch ([`cuts`]). Some lose one direction only: a write arrives, its answer does not.
//!
//! `make chaos-net` runs it; it needs docker, on Linux, where a container's address can be reached from here.

mod cuts;
mod docker;
mod field;
mod strikes;

use super::plan::Plan;
use super::{Process, Run, report, scale, seed, settings};
use crate::world::{Servers, World};
use field::Field;
use strikes::Worker;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long, in containers: make chaos-net"]
async fn networks_are_cut_between_containers() {
    let plan = Plan::of_networks(seed().unwrap_or_else(rand::random), scale());
    let evidence = report::directory("net");
    let field = Field::build(&evidence).await;
    let servers = Servers::elsewhere(field.nodes[0].amqp_url(), field.redis_url());
    let world = World::bare(Some(servers), |setup| {
        settings(setup, &plan);
        setup.sandbox.listen = (field.network.gateway, 0).into();
    })
    .await;
    let amqp_urls = field.nodes.iter().map(field::Node::amqp_url).collect();
    let mut run = Run::prepare(plan, world, amqp_urls).await;
    field.every_queue_has_a_member_on_each_node().await;
    // Where a worker is, one name stands for all three nodes.
    run.world.change_settings(|setup| {
        setup.set("amqp.url", format!("{}?heartbeat=3", field::AMQP_URL));
    });
    let workers = strike(&run, &field).await;
    run.finish("net", workers).await;
}

/// Cuts until the whole load is published and the last cut has healed. The workers are left.
async fn strike(run: &Run, field: &Field) -> Vec<Process> {
    let workers = [Worker::start(run, field, "worker1").await, Worker::start(run, field, "worker2").await];
    run.world.faults(super::strikes::usual_faults()).await;
    let faults = async {
        tokio::join!(
            strikes::links(run, field, &workers, &strikes::BROKER),
            strikes::links(run, field, &workers, &strikes::REDIS),
            strikes::links(run, field, &workers, &strikes::API),
            strikes::nodes(run, field),
        );
    };
    if run.under_load(faults).await.is_none() {
        // Whatever was cut is left so; the evidence must not suffer from it.
        strikes::heal_everything(field, &workers).await;
    }
    workers.map(|worker| worker.process).into()
}
