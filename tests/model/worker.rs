//! The worker: `worker::batch` and `pipeline::execute` with each effect as a step of its own. Whatever decides is the
//! production code; what is written anew here is only the order of the effects.

use context_injector::lease::PastVerdict;
use context_injector::pipeline::endings::{self, Ended, Task};
use context_injector::pipeline::ledger::Mark;
use context_injector::pipeline::memory::Memory;
use context_injector::pipeline::place::Place;
use context_injector::pipeline::plan::{self, Candidate, Fate, Ground, MAX_BATCH, Plan, batch_len};
use context_injector::pipeline::snapshot::{Snapshot, Variables};
use context_injector::pipeline::verdict::Verdict;
use context_injector::worker::recent::Recent;

use crate::mutants::Mutant;
use crate::platform::{Message, Request, version};
use crate::scenario::{Scenario, at};
use crate::shared::Shared;
use crate::state::{Ending, Held, Phase, Ready, Run, Said, State, Worker};

/// What becomes of a request and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    Comes,
    /// The request arrived.
    IsLost,
    /// The request is still under way.
    IsGivenUp,
}

/// One worker of the model at work on a state.
pub struct At<'a> {
    pub scenario: &'a Scenario,
    pub state: &'a mut State,
    pub worker: usize,
}

impl At<'_> {
    fn me(&mut self) -> &mut Worker {
        &mut self.state.workers[self.worker]
    }

    /// Takes the first jobs of the lane.
    pub fn begin(&mut self) {
        let jobs = self.me().lane.clone();
        let count = batch_len(jobs.iter().map(|message| &self.scenario.tasks[usize::from(message.job)].job));
        let held = self
            .me()
            .lane
            .drain(..count)
            .map(|message| Held { message, tried: None, before: None })
            .collect::<Vec<_>>();
        let session = self.me().session;
        self.me().run = Some(Run {
            past: vec![None; held.len()],
            held,
            session,
            noticed: false,
            recorded: None,
            endings: Vec::new(),
            until: 0,
            base: None,
            sent_requests: false,
            phase: Phase::Acquire,
        });
    }

    /// What Redis tells with the lease, whoever has that.
    pub fn acquire(&mut self, mut run: Run) -> Run {
        let redis = &self.state.redis;
        run.recorded = redis.version.clone();
        run.past = run.held.iter().map(|held| redis.verdicts.get(&held.message.job).cloned()).collect();
        for at in 0..run.held.len() {
            run.held[at].before = self.place(&run, at);
        }
        run.phase = Phase::Look;
        run
    }

    /// Goes on until something is to be sent or to be told. At most one read; returns whether there was one.
    pub fn look(&mut self, mut run: Run, stale: bool) -> (Run, bool) {
        let now = at(self.state.platform.clock);
        let mut has_read = false;
        run.phase = loop {
            let done = run.endings.len();
            if done == run.held.len() {
                self.remember_verdicts(&run);
                break Phase::Settle { released: false, published: 0, acked: 0 };
            }
            if run.until <= done {
                if let Some(said) = self.remembered(&run, done) {
                    let (said, place) = said;
                    run.endings.push(Ending::Verdict { said, left: None, place });
                    continue;
                }
                self.take_together(&mut run);
            }
            let tasks = self.tasks(&run);
            let expired = endings::expired(&tasks, now);
            if expired > 0 {
                let end = Ended::plain(endings::expiry());
                run.endings.extend(tasks[..expired].iter().map(|task| ending(&end, task)));
                continue;
            }
            let candidates = tasks.iter().map(Task::candidate).collect::<Vec<_>>();
            let needs_state = plan::needs_state(&self.scenario.bot, &candidates);
            let mut memory = (*self.me().memory).clone();
            let snapshot = if let Some(snapshot) = memory.recent(needs_state, now) {
                snapshot.clone()
            } else if let Some(version) = run.recorded.as_ref().filter(|_| !run.sent_requests && !needs_state) {
                Snapshot::of_version(Some(version.clone()))
            } else if has_read {
                break Phase::Look;
            } else {
                (has_read, run.sent_requests) = (true, true);
                self.read(&mut memory, stale)
            };
            self.me().memory = Shared::new(memory);
            let plan = self.plan(&run, &snapshot, candidates);
            if plan.body.is_some() {
                let before = snapshot.ledger().and_then(|ledger| ledger.low_water());
                let after = plan.ledger.as_ref().and_then(|ledger| ledger.low_water());
                let ready = Shared::new(Ready { snapshot, plan });
                break if after.is_some() && before != after { Phase::Witness(ready) } else { Phase::Write(ready) };
            }
            if plan.holds(&snapshot) {
                let after = snapshot.version.clone();
                let marks = tasks.iter().map(|task| task.mark.clone()).collect::<Vec<_>>();
                self.change_memory(|memory| memory.applied_without_entry(&plan, &marks));
                self.conclude(&mut run, &plan, &snapshot, after.as_ref(), &tasks);
            } else {
                self.forget(&mut run, &snapshot);
            }
        };
        (run, has_read)
    }

    /// Leaves in Redis what the ledger will let go.
    pub fn witness(&mut self, mut run: Run, ready: &Shared<Ready>) -> Run {
        let before = ready.snapshot.ledger().and_then(|ledger| ledger.low_water());
        if let Some(after) = ready.plan.ledger.as_ref().and_then(|ledger| ledger.low_water()) {
            self.state.redis.witness.record(before, after, &ready.plan.evicted);
        }
        run.phase = Phase::Write(ready.clone());
        run
    }

    /// Sends the plan.
    pub fn write(&mut self, mut run: Run, ready: &Shared<Ready>, answer: Answer) -> Run {
        let Ready { snapshot, plan } = &**ready;
        let mutant = self.scenario.mutant;
        let request = self.request(&run, ready);
        run.sent_requests = true;
        let accepted = match answer {
            Answer::Comes | Answer::IsLost => self.state.platform.write(&request, &self.scenario.does, mutant),
            Answer::IsGivenUp => {
                self.state.platform.flying.push(Shared::new(request));
                None
            }
        };
        let mut tasks = self.tasks(&run);
        let now = at(self.state.platform.clock);
        if answer != Answer::Comes {
            endings::note_tried(plan, snapshot, &mut tasks, now);
            let done = run.endings.len();
            for (held, task) in run.held[done..].iter_mut().zip(tasks) {
                held.tried = task.tried;
            }
            self.change_memory(Memory::forget_snapshot);
            return run;
        }
        run.phase = Phase::Look;
        match accepted {
            Some(version) => {
                let marks = tasks.iter().map(|task| task.mark.clone()).collect::<Vec<_>>();
                let key = self.scenario.ledger_key();
                self.change_memory(|memory| memory.advance(plan, snapshot, Some(&version), &marks, key, now));
                self.conclude(&mut run, plan, snapshot, Some(&version), &tasks);
            }
            None if mutant == Some(Mutant::FreshVersionUnderOldPlan) => {
                let fresh = Snapshot { version: Some(version(self.state.platform.version)), ..snapshot.clone() };
                run.phase = Phase::Write(Shared::new(Ready { snapshot: fresh, plan: plan.clone() }));
            }
            None => self.forget(&mut run, snapshot),
        }
        run
    }

    /// The target fails until the repetitions in place are spent.
    pub fn outage(&mut self, mut run: Run) -> Run {
        run.endings.resize(run.until, Ending::Retry);
        run.phase = Phase::Look;
        run
    }

    /// Gives the lease back and leaves version and verdicts.
    pub fn release(&mut self, run: &Run) {
        if run.sent_requests {
            self.state.redis.version = self.me().memory.version_without_ledger().cloned();
        }
        for (held, ending) in run.held.iter().zip(&run.endings) {
            if let Ending::Verdict { left: Some(left), .. } = ending
                && (!run.noticed || !left.is_applied())
            {
                self.state.redis.verdicts.insert(held.message.job, left.clone());
            }
        }
    }

    /// Publishes what came of one job: its verdict, or its message for the next attempt.
    pub fn publish(&mut self, run: &Run, at: usize) {
        let message = run.held[at].message;
        match &run.endings[at] {
            Ending::Verdict { said, .. } => {
                self.state.told.insert((message.job, message.generation, *said));
            }
            Ending::Retry => {
                let task = self.task(&run.held[at]);
                let ambiguous = task.may_have_been_applied();
                self.state.happened.ladder = true;
                self.state.broker.publish(Message { attempts: message.attempts + 1, ambiguous, ..message });
            }
        }
    }

    fn request(&self, run: &Run, ready: &Ready) -> Request {
        let mut changes = ready.plan.changes.clone();
        if let Some(mutant) = self.scenario.mutant {
            mutant.mutilate(&mut changes, self.scenario.ledger_key());
        }
        let jobs = ready.plan.fates.iter().zip(&run.held[run.endings.len()..]);
        let jobs = jobs.filter(|(fate, _)| matches!(fate, Fate::Applies(_)));
        Request {
            if_match: ready.snapshot.version.clone(),
            changes,
            body: ready.plan.body.clone().unwrap_or_default(),
            jobs: jobs.map(|(_, held)| (held.message.job, held.message.generation)).collect(),
        }
    }

    /// The jobs that are carried out together: up to one whose verdict is known already.
    fn take_together(&self, run: &mut Run) {
        let done = run.endings.len();
        let known = (done + 1..run.held.len()).find(|at| self.remembered(run, *at).is_some());
        let rest = &run.held[done..known.unwrap_or(run.held.len())];
        let jobs = rest.iter().map(|held| &self.scenario.tasks[usize::from(held.message.job)].job);
        run.until = done + batch_len(jobs).max(1);
        run.base = None;
    }

    /// The verdict that a job had before, as this worker or Redis remembers it.
    fn remembered(&self, run: &Run, at: usize) -> Option<(Said, Option<Place>)> {
        let Held { message, before, .. } = &run.held[at];
        if before.is_some() {
            return None;
        }
        let (mark, generation) = (self.mark(message.job), u32::from(message.generation));
        let recent = self.recent();
        match recent.find(mark, generation) {
            Some(verdict) => Some((Said::from(verdict), recent.place(mark).cloned())),
            None => {
                let past = run.past[at].as_ref()?;
                Some((Said::from(&past.for_generation(generation)?), past.place().cloned()))
            }
        }
    }

    /// Where a job that comes again took effect, if no ledger named it.
    fn place(&self, run: &Run, at: usize) -> Option<Place> {
        let held = &run.held[at];
        let mark = self.mark(held.message.job);
        let recent = self.recent();
        if self.scenario.mutant == Some(Mutant::VerdictsWithoutPlace) || !self.task(held).suspect {
            return None;
        }
        match recent.find(mark, u32::from(held.message.generation)) {
            Some(_) => recent.place(mark).cloned(),
            None => run.past[at].as_ref()?.place().cloned(),
        }
    }

    fn mark(&self, job: u8) -> &Mark {
        &self.scenario.tasks[usize::from(job)].mark
    }

    fn recent(&self) -> Recent {
        let mut recent = Recent::default();
        for (job, generation, said, place) in &self.state.workers[self.worker].recent {
            recent.insert(self.mark(*job).clone(), u32::from(*generation), Verdict::from(*said), place.clone());
        }
        recent
    }

    fn remember_verdicts(&mut self, run: &Run) {
        for (held, ending) in run.held.iter().zip(&run.endings) {
            let Ending::Verdict { said, place, .. } = ending else { continue };
            let entry = (held.message.job, held.message.generation, *said, place.clone());
            if !self.me().recent.contains(&entry) {
                self.me().recent.push(entry);
            }
        }
    }

    /// The tasks that are carried out together and have no end yet.
    fn tasks(&self, run: &Run) -> Vec<Task> {
        run.held[run.endings.len()..run.until].iter().map(|held| self.task(held)).collect()
    }

    fn task(&self, Held { message, tried, before }: &Held) -> Task {
        Task {
            generation: u32::from(message.generation),
            suspect: message.redelivered || message.attempts > 0 || message.generation > 0,
            attempts: u32::from(message.attempts),
            uncertain: message.redelivered || message.ambiguous,
            tried: tried.clone(),
            before: before.clone(),
            ..self.scenario.tasks[usize::from(message.job)].clone()
        }
    }

    fn read(&mut self, memory: &mut Memory, stale: bool) -> Snapshot {
        let platform = &self.state.platform;
        let now = at(platform.clock);
        let current = (platform.version, &platform.variables);
        let shown = platform.before.as_ref().filter(|_| stale).map_or(current, |(number, old)| (*number, old));
        let known = memory.known().cloned();
        let key = self.scenario.ledger_key();
        let read = |(number, variables): (u64, &Shared<Variables>)| {
            Snapshot::read(Some(version(number)), (**variables).clone(), key, known.as_ref(), now)
        };
        let mut snapshot = read(shown);
        if snapshot.reset.is_some() {
            snapshot = read(current);
        }
        if let Some(low) = memory.missed_evictions(&snapshot)
            && let Some(found) = self.state.redis.witness.recall(low.evicted)
        {
            memory.recall(found);
        }
        memory.remember(&mut snapshot, now);
        snapshot
    }

    fn plan(&self, run: &Run, snapshot: &Snapshot, mut candidates: Vec<Candidate<'_>>) -> Plan {
        if self.scenario.mutant == Some(Mutant::NoEntryForSuspects) {
            for candidate in &mut candidates {
                candidate.suspect &= candidate.job.wants_ledger();
            }
        }
        let memory = &self.state.workers[self.worker].memory;
        let ground = Ground {
            bot: &self.scenario.bot,
            snapshot,
            base: run.base.as_deref(),
            backfill: memory.unrecorded(),
            evicted: memory.evicted(),
            now: at(self.state.platform.clock),
        };
        plan::plan(ground, &candidates, MAX_BATCH, None)
    }

    fn conclude(
        &self,
        run: &mut Run,
        plan: &Plan,
        snapshot: &Snapshot,
        after: Option<&context_injector::job::Version>,
        tasks: &[Task],
    ) {
        for (mut ended, task) in endings::conclude(plan, snapshot, after, tasks).zip(tasks) {
            if self.scenario.mutant == Some(Mutant::FailedJobIgnored) && !ended.repeat {
                ended.verdict = Verdict::Applied;
            }
            ended.keep_to_the_first(task);
            let mut ending = ending(&ended, task);
            if self.scenario.mutant == Some(Mutant::DeduplicationOnlyInRedis)
                && let Ending::Verdict { said: Said::Applied, left, .. } = &mut ending
            {
                *left = Some(PastVerdict::Applied(None));
            }
            run.endings.push(ending);
        }
    }

    /// The snapshot was overtaken. What it showed is what we knew before the others' changes.
    fn forget(&mut self, run: &mut Run, snapshot: &Snapshot) {
        self.change_memory(Memory::forget_snapshot);
        if run.base.is_none() {
            run.base = snapshot.variables().map(|variables| Shared::new((**variables).clone()));
        }
    }

    fn change_memory(&mut self, change: impl FnOnce(&mut Memory)) {
        let mut memory = (*self.me().memory).clone();
        change(&mut memory);
        self.me().memory = Shared::new(memory);
    }
}

fn ending(ended: &Ended, task: &Task) -> Ending {
    let left = PastVerdict::to_be_left(ended, task.generation);
    Ending::Verdict { said: Said::from(&ended.verdict), left, place: ended.place.clone() }
}
