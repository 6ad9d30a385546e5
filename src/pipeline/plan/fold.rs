//! Folding a batch: what each job makes of the state that the ones before it left, and what is known of it from
//! before. What cannot be folded ends alone and leaves nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::{Applied, Candidate, Fate, Ground, KeyOutcome, Plan};
use crate::config::{Bot, LedgerMode};
use crate::job::{Job, Name, OnConflict, Operation, Scope, Variable, Version};
use crate::pipeline::evicted::Memory;
use crate::pipeline::json;
use crate::pipeline::ledger::{Found, Ledger, Mark};
use crate::pipeline::merge;
use crate::pipeline::numbers::json_eq;
use crate::pipeline::place::Place;
use crate::pipeline::snapshot::{Contents, Snapshot};
use crate::pipeline::templates::{RenderError, Template};
use crate::pipeline::verdict::{KeyResult, Reason, Rejection};
use crate::target::{self, Change};

/// The state of a fold: what the jobs so far make of the snapshot.
pub(super) struct Fold<'a> {
    bot: &'a Bot,
    snapshot: &'a Snapshot,
    ground: Ground<'a>,
    now: Timestamp,
    /// What differs from the snapshot.
    overlay: BTreeMap<Name, Option<Value>>,
    fates: Vec<Fate>,
    /// Tombstones to write: mark, generation, code.
    tombstones: Vec<(Mark, u32, Reason)>,
    sequences: Vec<(Name, u64)>,
    depends_on_state: bool,
    /// Whether jobs that may be under way elsewhere get an entry although they are plain.
    suspects_get_entries: bool,
    /// Jobs without an entry that were applied before, and the version that they were applied on.
    confirmed: Vec<(Mark, Option<Version>)>,
    /// Jobs that this fold does again.
    redone: Vec<Mark>,
}

/// The part of a fold that one job adds, kept only if the whole job can be folded.
#[derive(Default)]
struct Step {
    overlay: BTreeMap<Name, Option<Value>>,
    sequences: Vec<(Name, u64)>,
}

impl<'a> Fold<'a> {
    pub(super) fn new(ground: Ground<'a>, suspects_get_entries: bool) -> Self {
        Self {
            bot: ground.bot,
            snapshot: ground.snapshot,
            ground,
            now: ground.now,
            overlay: BTreeMap::new(),
            fates: Vec::new(),
            tombstones: Vec::new(),
            sequences: Vec::new(),
            depends_on_state: false,
            suspects_get_entries,
            confirmed: Vec::new(),
            redone: Vec::new(),
        }
    }

    /// The ledger, where it is kept: read, and to be written on the version that it was read at.
    fn ledger(&self) -> Option<&Ledger> {
        let kept = self.bot.ledger != LedgerMode::Off && self.snapshot.version.is_some();
        self.snapshot.ledger().filter(|_| kept)
    }

    /// The next job's fate.
    pub(super) fn push(&mut self, fate: Fate) {
        self.fates.push(fate);
    }

    /// The fate of a job that is in the batch already: it was sent twice.
    pub(super) fn twin(&self, before: &[Candidate<'_>], candidate: &Candidate<'_>) -> Option<Fate> {
        let mut earlier = before.iter().zip(&self.fates).rev();
        let (twin, fate) = earlier.find(|(twin, _)| twin.mark == candidate.mark)?;
        match fate {
            Fate::Applies(_) | Fate::Repeat => Some(Fate::Repeat),
            Fate::Refused(rejection) | Fate::RefusedBefore(rejection) if twin.generation == candidate.generation => {
                Some(Fate::RefusedBefore(rejection.clone()))
            }
            Fate::Refused(_) | Fate::RefusedBefore(_) | Fate::Unknown(_) => None,
        }
    }

    pub(super) fn judge(&mut self, candidate: &Candidate<'_>, refusal: Option<Rejection>) -> Fate {
        if let Some(fate) = self.remember(candidate) {
            return fate;
        }
        if candidate.job.deadline < self.now {
            let text = "the deadline passed before the job was applied";
            return self.refuse(candidate, Rejection::new(Reason::Expired, text));
        }
        if let Some(rejection) = refusal {
            return self.refuse(candidate, rejection);
        }
        self.depends_on_state = true;
        match self.fold(candidate.job) {
            Ok((applied, step)) => {
                self.overlay.extend(step.overlay);
                self.sequences.extend(step.sequences);
                self.redone.extend(candidate.suspect.then(|| candidate.mark.clone()));
                Fate::Applies(applied)
            }
            Err(rejection) => self.refuse_by_state(candidate, rejection),
        }
    }

    /// What ledger and witnesses say of the job; `None`: it is new.
    fn remember(&mut self, candidate: &Candidate<'_>) -> Option<Fate> {
        let snapshot = self.snapshot;
        let Contents::Full { ledger, .. } = &snapshot.contents else { return None };
        if self.bot.ledger == LedgerMode::Off {
            return None;
        }
        let Ok(ledger) = ledger else {
            let text = "the ledger of the conversation has a form that this version does not know";
            return Some(Fate::Unknown(Rejection::new(Reason::LedgerUnreadable, text)));
        };
        match ledger.find(&candidate.mark, candidate.generation) {
            Some(Found::Applied) => return Some(Fate::Repeat),
            Some(Found::GivenUp { code, .. }) => {
                let text = "the job was given up before, and a replay may try it again";
                return Some(Fate::RefusedBefore(Rejection::new(code, text)));
            }
            None => {}
        }
        if let Some(before) = candidate.before {
            return self.stands(ledger, candidate, before).then_some(Fate::Repeat);
        }
        let after = |reset: Timestamp| candidate.published.is_some_and(|published| published > reset);
        if candidate.suspect && self.snapshot.reset.is_some_and(|reset| !after(reset)) {
            let text =
                "the conversation was cleared or went back, and with it the record of whether the job was applied";
            return Some(Fate::Unknown(Rejection::new(Reason::ConversationReset, text)));
        }
        let low = ledger.low_water()?;
        // An effect of a try of ours is younger than the try; that of an earlier delivery, than the publication.
        let earliest = if candidate.suspect { candidate.published } else { candidate.tried.or(candidate.published) };
        match self.ground.evicted.find(&candidate.mark, Some(low)) {
            Memory::Applied => return Some(Fate::Repeat),
            Memory::Never => return None,
            Memory::NotSince(since) if earliest.is_some_and(|earliest| earliest > since) => return None,
            Memory::NotSince(_) | Memory::Nothing => {}
        }
        // What a producer's clock says is believed of a first delivery only.
        let doubtful = candidate.suspect || earliest.is_some_and(|earliest| earliest <= low.time());
        let text = "the job may have been applied longer ago than the record reaches back";
        doubtful.then(|| Fate::Unknown(Rejection::new(Reason::LedgerOverrun, text)))
    }

    /// Whether a job that took effect without an entry need not be done again. Like one that is, it gets its entry now:
    /// whoever is about to do an earlier one again has planned on a version that this moves.
    fn stands(&mut self, ledger: &Ledger, candidate: &Candidate<'_>, before: &Place) -> bool {
        self.depends_on_state = true;
        let follows_one = before.follows.as_ref().is_some_and(|mark| self.redone.contains(mark));
        let overtaken = follows_one || before.is_overtaken(ledger);
        if !overtaken {
            self.confirmed.push((candidate.mark.clone(), before.base.clone()));
        }
        !overtaken
    }

    /// Ends a job that this state refuses and another one would take: the refusal is made to last, by a tombstone,
    /// so that the job gets no second verdict should it come again when the state is another.
    fn refuse_by_state(&mut self, candidate: &Candidate<'_>, rejection: Rejection) -> Fate {
        let code = rejection.code;
        let fate = self.refuse(candidate, rejection);
        let lasts = self.tombstones.last().is_some_and(|(mark, ..)| *mark == candidate.mark);
        if matches!(fate, Fate::Refused(_)) && !lasts && self.is_kept(candidate.job) && self.ledger().is_some() {
            self.tombstones.push((candidate.mark.clone(), candidate.generation, code));
        }
        fate
    }

    /// Whether each try of the job writes its entry.
    fn is_kept(&self, job: &Job) -> bool {
        match self.bot.ledger {
            LedgerMode::Always => true,
            LedgerMode::Auto => job.wants_ledger(),
            LedgerMode::Off => false,
        }
    }

    /// Ends a job that is not applied. If an earlier try of it may have got anywhere, that must first be ruled
    /// out for ever: by its absence from the ledger together with a tombstone.
    fn refuse(&mut self, candidate: &Candidate<'_>, rejection: Rejection) -> Fate {
        if !candidate.uncertain && candidate.tried.is_none() {
            return Fate::Refused(rejection);
        }
        let recorded = self.is_kept(candidate.job);
        if !recorded && is_deterministic(rejection.code) {
            // Such a job is the same request every time, so an earlier try of it was refused as well.
            return Fate::Refused(rejection);
        }
        if !recorded || candidate.tried_without_entry || self.ledger().is_none() {
            let text = format!("an earlier try may have been applied, and then the job was refused ({rejection})");
            return Fate::Unknown(Rejection { code: Reason::AmbiguousWrite, text, pointer: rejection.pointer });
        }
        self.tombstones.push((candidate.mark.clone(), candidate.generation, rejection.code));
        Fate::Refused(rejection)
    }

    fn current<'s>(&'s self, step: &'s Step, name: &Name) -> Option<&'s Value> {
        if let Some(value) = step.overlay.get(name).or_else(|| self.overlay.get(name)) {
            return value.as_ref();
        }
        self.snapshot.variables().and_then(|variables| variables.get(name))
    }

    fn fold(&self, job: &Job) -> Result<(Applied, Step), Rejection> {
        if let Some(base) = &job.base_version
            && !self.snapshot.version.as_ref().is_some_and(|version| same_version(version.as_str(), base.as_str()))
        {
            let text = "the conversation is no longer at this version";
            return Err(Rejection::at(Reason::PreconditionFailed, "/base_version", text));
        }
        let mut applied = Applied::default();
        let mut step = Step::default();
        let mut outcomes = BTreeMap::new();
        // The job's plain variables come first, so that its templates see them; templates see each other as
        // they were, whatever their order in the message.
        let templated = |variable: &&Variable| variable.operation.template().is_some();
        for variable in job.variables.iter().filter(|variable| !templated(variable)) {
            let outcome = self.fold_variable(job, variable, None, &mut step)?;
            outcomes.insert(&variable.name, outcome);
        }
        let mut rendered = Vec::new();
        for variable in job.variables.iter().filter(templated) {
            let Some(template) = variable.operation.template() else { continue };
            let pointer = format!("/variables/{}/template", variable.name.key);
            rendered.push((variable, self.render(job, template, &pointer, &step, &mut applied)?));
        }
        for (name, template) in &job.templates {
            let text = self.render(job, template, &format!("/templates/{name}"), &step, &mut applied)?;
            applied.templates.push((name.clone(), text));
        }
        for (variable, text) in rendered {
            let outcome = self.fold_variable(job, variable, Some(Value::String(text)), &mut step)?;
            outcomes.insert(&variable.name, outcome);
        }
        applied.keys = job.variables.iter().filter_map(|variable| outcomes.remove(&variable.name)).collect();
        Ok((applied, step))
    }

    fn render(
        &self,
        job: &Job,
        template: &Template,
        pointer: &str,
        step: &Step,
        applied: &mut Applied,
    ) -> Result<String, Rejection> {
        let look_up = |scope: Scope, key: &str| {
            (key != self.bot.ledger_key).then(|| self.current(step, &Name::new(scope, key))).flatten()
        };
        let rendered =
            template.render(look_up, job.on_unresolved, self.bot.max_value_bytes).map_err(|error| match error {
                RenderError::TooLarge => {
                    let text = format!("the text has more than max_value_bytes, {}", self.bot.max_value_bytes);
                    Rejection::at(Reason::ValueTooLarge, pointer, text)
                }
                RenderError::Unresolved(path) => {
                    let path = path.chars().take(128).collect::<String>();
                    Rejection::at(Reason::UnresolvedPlaceholder, pointer, format!("{{{{{path}}}}} resolves to nothing"))
                }
            })?;
        for path in rendered.unresolved {
            if !applied.unresolved.contains(&path) {
                applied.unresolved.push(path);
            }
        }
        Ok(rendered.text)
    }

    fn fold_variable(
        &self,
        job: &Job,
        variable: &Variable,
        rendered: Option<Value>,
        step: &mut Step,
    ) -> Result<KeyOutcome, Rejection> {
        let name = &variable.name;
        let pointer = |field: &str| match field {
            "" => format!("/variables/{}", name.key),
            field => format!("/variables/{}/{field}", name.key),
        };
        let outcome = |result, value| Ok(KeyOutcome { name: name.clone(), result, value });
        let is_set = matches!(variable.operation, Operation::Set(_));
        if let Some(sequence) = job.sequence.filter(|_| is_set) {
            let kept = self.sequences.iter().rev().find(|(of, _)| of == name).map(|(_, sequence)| *sequence);
            let kept = kept.or_else(|| self.ledger().and_then(|ledger| ledger.sequence(name)));
            if kept.is_some_and(|kept| kept > sequence) {
                return outcome(KeyResult::Superseded, None);
            }
            if kept != Some(sequence) {
                step.sequences.push((name.clone(), sequence));
            }
        }
        let conflict = self.changed_by_others(name) && !merge::is_commutative(&variable.operation);
        let known = self.snapshot.variables().is_some() || self.overlay.contains_key(name);
        let (result, unchanged) = {
            let current = self.current(step, name);
            let result = merge::apply(&variable.operation, rendered, current);
            let unchanged = match &result {
                Ok(Some(new)) => known && current.is_some_and(|current| json_eq(current, new)),
                Ok(None) => known && current.is_none(),
                Err(_) => false,
            };
            (result, unchanged)
        };
        if unchanged {
            return outcome(KeyResult::Unchanged, result.ok().flatten());
        }
        match (conflict, job.on_conflict) {
            (true, OnConflict::KeepTheirs) => return outcome(KeyResult::KeptTheirs, None),
            (true, OnConflict::Fail) => {
                let text = "somebody else changed the variable since our last look";
                return Err(Rejection::at(Reason::Conflict, pointer(""), text));
            }
            (true, OnConflict::Overwrite) | (false, _) => {}
        }
        let new = result.map_err(|fault| Rejection::at(fault.code, pointer(fault.field), fault.text))?;
        let bytes = new.as_ref().map_or(0, json::length);
        if bytes > self.bot.max_value_bytes {
            let text = format!("the value would have {bytes} bytes; max_value_bytes is {}", self.bot.max_value_bytes);
            return Err(Rejection::at(Reason::ValueTooLarge, pointer(""), text));
        }
        step.overlay.insert(name.clone(), new.clone());
        outcome(KeyResult::Written, new)
    }

    /// Whether the variable in the snapshot differs from what we knew when the batch was taken.
    fn changed_by_others(&self, name: &Name) -> bool {
        let (Some(base), Some(theirs)) = (self.ground.base, self.snapshot.variables()) else { return false };
        match (base.get(name), theirs.get(name)) {
            (Some(base), Some(theirs)) => !json_eq(base, theirs),
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        }
    }

    pub(super) fn finish(mut self, batch: &[Candidate<'_>]) -> Plan {
        let tombstones = u64::try_from(self.tombstones.len()).unwrap_or(u64::MAX);
        self.drop_what_ends_as_it_began();
        let ledger = if self.records(batch) { self.ledger().cloned() } else { None };
        let ledger =
            ledger.zip(self.snapshot.version.clone()).map(|(ledger, version)| self.record(ledger, &version, batch));
        if ledger.is_none() {
            self.link(batch);
        }
        let mut changes = std::mem::take(&mut self.overlay)
            .into_iter()
            .map(|(name, value)| Change { name, value })
            .collect::<Vec<_>>();
        let mut evicted = Vec::new();
        let ledger = ledger.map(|mut ledger| {
            let (value, gone) = ledger.to_value();
            evicted = gone;
            let value = Some(value);
            changes.push(Change { name: Name::new(Scope::Conversation, &self.bot.ledger_key), value });
            ledger
        });
        let body = match batch.first() {
            Some(first) if !changes.is_empty() => Some(target::encode(self.bot, &first.job.conversation, &changes)),
            _ => None,
        };
        Plan { fates: self.fates, changes, body, ledger, evicted, tombstones, depends_on_state: self.depends_on_state }
    }

    /// A value that a later job of the batch takes back is not named in the PATCH.
    fn drop_what_ends_as_it_began(&mut self) {
        let Some(original) = self.snapshot.variables() else { return };
        self.overlay.retain(|name, value| match (original.get(name), value) {
            (Some(before), Some(after)) => !json_eq(before, after),
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        });
    }

    /// Whether the PATCH carries the ledger. A suspect may be under way elsewhere too: its entry tells that other
    /// worker, who does not know that it is one, even where there was nothing left to write.
    fn records(&self, batch: &[Candidate<'_>]) -> bool {
        if self.bot.ledger == LedgerMode::Off {
            return false;
        }
        let writes = |applied: &Applied| applied.keys.iter().any(|key| key.result == KeyResult::Written);
        let wanted = self.fates.iter().zip(batch).any(|(fate, candidate)| match fate {
            // Even where the values end as they began, the jobs in between must not happen twice.
            Fate::Applies(applied) if writes(applied) && self.is_kept(candidate.job) => true,
            Fate::Applies(_) => candidate.suspect && (self.suspects_get_entries || self.is_kept(candidate.job)),
            Fate::Repeat | Fate::RefusedBefore(_) | Fate::Refused(_) | Fate::Unknown(_) => false,
        });
        let confirms = self.suspects_get_entries && !self.confirmed.is_empty();
        wanted || confirms || !self.tombstones.is_empty() || !self.sequences.is_empty()
    }

    /// Tells each job without an entry which one it follows.
    fn link(&mut self, batch: &[Candidate<'_>]) {
        let mut last = self.ground.backfill.last();
        for (fate, candidate) in self.fates.iter_mut().zip(batch) {
            if let Fate::Applies(applied) = fate {
                applied.follows = last.replace(&candidate.mark).cloned();
            }
        }
    }

    fn record(&mut self, mut ledger: Ledger, version: &Version, batch: &[Candidate<'_>]) -> Ledger {
        // One of ours that is there already was done again elsewhere, and those after it will be: they stay unnamed.
        let is_missing = |ledger: &Ledger, mark: &Mark| ledger.find(mark, 0) != Some(Found::Applied);
        let ours = self.ground.backfill.iter().take_while(|mark| is_missing(&ledger, mark)).collect::<Vec<_>>();
        for mark in ours {
            ledger.add_applied(mark.clone(), version, self.now);
        }
        for (mark, base) in self.confirmed.drain(..) {
            if is_missing(&ledger, &mark) {
                ledger.add_applied(mark, base.as_ref().unwrap_or(version), self.now);
            }
        }
        for (fate, candidate) in self.fates.iter_mut().zip(batch) {
            if let Fate::Applies(applied) = fate {
                applied.recorded = true;
                ledger.add_applied(candidate.mark.clone(), version, self.now);
            }
        }
        for (mark, generation, code) in self.tombstones.drain(..) {
            ledger.add_tombstone(mark, generation, code, self.now);
        }
        for (name, sequence) in &self.sequences {
            ledger.set_sequence(name, *sequence);
        }
        ledger
    }
}

/// Whether a job whose request does not depend on the state is refused with this code at every try or at none.
fn is_deterministic(code: Reason) -> bool {
    matches!(
        code,
        Reason::RefusedByTarget | Reason::ConversationNotFound | Reason::PayloadTooLarge | Reason::ValueTooLarge
    )
}

/// Versions as producers copy them: with or without the quotes and the weakness mark of an entity tag.
fn same_version(a: &str, b: &str) -> bool {
    let bare = |text: &str| text.trim_start_matches("W/").trim_matches('"').to_owned();
    a == b || bare(a) == bare(b)
}
