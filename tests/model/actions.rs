//! What can happen next, in words, and what it makes of a state.

use std::fmt;

use crate::mutants::Mutant;
use crate::platform::Message;
use crate::scenario::{Fault, Scenario, name};
use crate::state::{Ending, Phase, Run, Said, State, WORKERS, Worker};
use crate::worker::{Answer, At};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Subscribe(usize),
    Deliver(usize),
    Begin(usize),
    Acquire(usize),
    Look { worker: usize, stale: bool },
    Witness(usize),
    Write(usize, Answer),
    Outage(usize),
    Release(usize),
    Publish(usize),
    Ack(usize),
    Crash(usize),
    Overtake(usize),
    Notice(usize),
    Arrive(usize),
    Wipe,
    Reset,
    Foreign,
    Flood,
    Replay { job: u8, generation: u8 },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |worker: &usize| if *worker == 0 { "worker A" } else { "worker B" };
        match self {
            Self::Subscribe(w) => write!(f, "{} becomes the active consumer", who(w)),
            Self::Deliver(w) => write!(f, "the next message is delivered to {}", who(w)),
            Self::Begin(w) => write!(f, "{} begins a batch", who(w)),
            Self::Acquire(w) => write!(f, "{} asks Redis for lease, version and past verdicts", who(w)),
            Self::Look { worker, stale: false } => write!(f, "{} looks at the conversation and plans", who(worker)),
            Self::Look { worker, stale: true } => write!(f, "{} is shown an older state and plans", who(worker)),
            Self::Witness(w) => write!(f, "{} leaves in Redis what the ledger will let go", who(w)),
            Self::Write(w, Answer::Comes) => write!(f, "{} sends its PATCH and gets the answer", who(w)),
            Self::Write(w, Answer::IsLost) => {
                write!(f, "{} sends its PATCH, which arrives; the answer is lost", who(w))
            }
            Self::Write(w, Answer::IsGivenUp) => {
                write!(f, "{} sends its PATCH, which is late; it gives up waiting", who(w))
            }
            Self::Outage(w) => write!(f, "the target fails until {} sends its jobs to the ladder", who(w)),
            Self::Release(w) => write!(f, "{} leaves version and verdicts in Redis", who(w)),
            Self::Publish(w) => write!(f, "{} publishes what came of its next job", who(w)),
            Self::Ack(w) => write!(f, "{} acknowledges its next message", who(w)),
            Self::Crash(w) => write!(f, "{} is killed, and starts anew", who(w)),
            Self::Overtake(w) => write!(f, "{} is cut off, and does not know it", who(w)),
            Self::Notice(w) => write!(f, "{} notices that it was cut off; its batch goes on", who(w)),
            Self::Arrive(_) => f.write_str("a late PATCH arrives"),
            Self::Wipe => f.write_str("Redis loses everything"),
            Self::Reset => f.write_str("the conversation is cleared"),
            Self::Foreign => f.write_str("the second writer writes"),
            Self::Flood => f.write_str("many other jobs are applied; the ledger lets go what it had"),
            Self::Replay { job, generation } => {
                write!(f, "an operator replays {} as generation {generation}", name(usize::from(*job)))
            }
        }
    }
}

/// What can go on by itself.
pub fn progress(scenario: &Scenario, state: &State, actions: &mut Vec<Action>) {
    for (w, worker) in state.workers.iter().enumerate() {
        let Some(run) = &worker.run else {
            if !worker.lane.is_empty() {
                actions.push(Action::Begin(w));
            }
            continue;
        };
        match &run.phase {
            Phase::Acquire => actions.push(Action::Acquire(w)),
            Phase::Look => actions.push(Action::Look { worker: w, stale: false }),
            Phase::Witness(_) => actions.push(Action::Witness(w)),
            Phase::Write(_) => actions.push(Action::Write(w, Answer::Comes)),
            Phase::Settle { released, published, acked } => {
                settling(scenario, w, run, (*released, *published, *acked), actions);
            }
        }
    }
    match state.broker.active {
        None => actions.extend((0..WORKERS).map(Action::Subscribe)),
        Some(w) if !state.broker.ready.is_empty() => actions.push(Action::Deliver(w)),
        Some(_) => {}
    }
}

/// Refusals are left in Redis before they are told; what was applied may be told meanwhile. Acknowledgements come
/// last and in order.
fn settling(
    scenario: &Scenario,
    w: usize,
    run: &Run,
    (released, published, acked): (bool, usize, usize),
    actions: &mut Vec<Action>,
) {
    if !released {
        actions.push(Action::Release(w));
    }
    let refuses = |ending: &Ending| matches!(ending, Ending::Verdict { left: Some(left), .. } if !left.is_applied());
    if !released && run.endings.iter().any(refuses) {
        return;
    }
    let (may_publish, may_ack) = match scenario.mutant {
        Some(Mutant::AckBeforePublish) => (published < acked, acked < run.held.len()),
        _ => (published < run.held.len(), acked < published),
    };
    if may_publish {
        actions.push(Action::Publish(w));
    }
    if may_ack {
        actions.push(Action::Ack(w));
    }
}

/// What may go wrong, or happen beside.
pub fn faults(state: &State, actions: &mut Vec<Action>) {
    for (w, worker) in state.workers.iter().enumerate() {
        let busy = worker.run.is_some() || !worker.lane.is_empty();
        if busy && state.may(Fault::Crash) {
            actions.push(Action::Crash(w));
        }
        let unaware = worker.session != state.broker.session;
        if unaware && (!worker.lane.is_empty() || worker.run.as_ref().is_some_and(|run| !run.noticed)) {
            actions.push(Action::Notice(w));
        }
        if busy && state.broker.active == Some(w) && state.may(Fault::Overtaken) {
            actions.push(Action::Overtake(w));
        }
        match worker.run.as_ref().map(|run| &run.phase) {
            Some(Phase::Look) if state.may(Fault::Stale) && state.platform.before.is_some() => {
                actions.push(Action::Look { worker: w, stale: true });
            }
            Some(Phase::Write(_)) => {
                if state.may(Fault::AnswerLost) {
                    actions.push(Action::Write(w, Answer::IsLost));
                }
                if state.may(Fault::Late) {
                    actions.push(Action::Write(w, Answer::IsGivenUp));
                }
                if state.may(Fault::Outage) {
                    actions.push(Action::Outage(w));
                }
            }
            _ => {}
        }
    }
    actions.extend((0..state.platform.flying.len()).map(Action::Arrive));
    let beside = [
        (Fault::Wiped, Action::Wipe),
        (Fault::Reset, Action::Reset),
        (Fault::Foreign, Action::Foreign),
        (Fault::Flood, Action::Flood),
    ];
    actions.extend(beside.into_iter().filter(|(fault, _)| state.may(*fault)).map(|(_, action)| action));
    if state.may(Fault::Replay) {
        let dead = state.told.iter().filter(|(.., said)| *said != Said::Applied);
        let replays = dead.map(|(job, generation, _)| Action::Replay { job: *job, generation: generation + 1 });
        actions.extend(replays);
    }
}

/// The state after an action; `None`: it changes nothing.
pub fn after(scenario: &Scenario, last: &State, action: Action) -> Option<State> {
    let mut state = last.clone();
    let mutant = scenario.mutant;
    match action {
        Action::Subscribe(w) => {
            state.notice(w);
            state.broker.active = Some(w);
            state.workers[w].session = state.broker.session;
        }
        Action::Deliver(w) => {
            let message = state.broker.deliver();
            state.workers[w].lane.push(message);
        }
        Action::Begin(worker) => At { scenario, state: &mut state, worker }.begin(),
        Action::Crash(w) => {
            state.spend(Fault::Crash);
            state.workers[w] = Worker { session: state.broker.session, ..Worker::default() };
            if state.broker.active == Some(w) {
                state.broker.take_back();
            }
        }
        Action::Overtake(_) => {
            state.spend(Fault::Overtaken);
            state.broker.take_back();
        }
        Action::Notice(w) => state.notice(w),
        Action::Arrive(at) => {
            let request = state.platform.flying.remove(at);
            state.platform.write(&request, &scenario.does, mutant);
        }
        Action::Wipe => {
            state.spend(Fault::Wiped);
            state.redis = crate::platform::Redis::default();
            state.happened.loss = true;
        }
        Action::Reset => {
            state.spend(Fault::Reset);
            state.platform.reset(mutant);
            state.happened.loss = true;
            state.happened.reset = true;
        }
        Action::Foreign => {
            state.spend(Fault::Foreign);
            state.platform.foreign(mutant);
        }
        Action::Flood => {
            state.spend(Fault::Flood);
            if let Some((before, after, gone)) = state.platform.flood(scenario.ledger_key(), mutant) {
                state.redis.witness.record(before, after, &gone);
            }
        }
        Action::Replay { job, generation } => {
            state.spend(Fault::Replay);
            let unknown = |said: &Said| matches!(said, Said::Unknown(_));
            let ambiguous =
                state.told.iter().any(|(of, before, said)| (*of, *before + 1) == (job, generation) && unknown(said));
            state.broker.publish(Message { id: 0, job, generation, attempts: 0, redelivered: false, ambiguous });
        }
        Action::Acquire(w)
        | Action::Look { worker: w, .. }
        | Action::Witness(w)
        | Action::Write(w, _)
        | Action::Outage(w)
        | Action::Release(w)
        | Action::Publish(w)
        | Action::Ack(w) => step(scenario, &mut state, w, action)?,
    }
    Some(state)
}

/// A step of a batch under way.
fn step(scenario: &Scenario, state: &mut State, worker: usize, action: Action) -> Option<()> {
    let mut run = state.workers[worker].run.take()?;
    let mut at = At { scenario, state, worker };
    run = match (action, run.phase.clone()) {
        (Action::Acquire(_), _) => at.acquire(run),
        (Action::Look { stale, .. }, _) => {
            let (run, has_read) = at.look(run, stale);
            if stale {
                at.state.spend(Fault::Stale);
                has_read.then_some(())?;
            }
            run
        }
        (Action::Witness(_), Phase::Witness(ready)) => at.witness(run, &ready),
        (Action::Write(_, answer), Phase::Write(ready)) => {
            match answer {
                Answer::Comes => {}
                Answer::IsLost => at.state.spend(Fault::AnswerLost),
                Answer::IsGivenUp => at.state.spend(Fault::Late),
            }
            at.write(run, &ready, answer)
        }
        (Action::Outage(_), _) => {
            at.state.spend(Fault::Outage);
            at.outage(run)
        }
        (_, Phase::Settle { mut released, mut published, mut acked }) => {
            match action {
                Action::Release(_) => {
                    at.release(&run);
                    released = true;
                }
                Action::Publish(_) => {
                    at.publish(&run, published);
                    published += 1;
                }
                _ => {
                    at.state.broker.ack(run.held[acked].message.id, run.session);
                    acked += 1;
                }
            }
            run.phase = Phase::Settle { released, published, acked };
            if released && published == run.held.len() && acked == run.held.len() {
                return Some(());
            }
            run
        }
        _ => return None,
    };
    state.workers[worker].run = Some(run);
    Some(())
}
