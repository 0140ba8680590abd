//! The task that shares. It never waits for the server: commands run in tasks of their own, and their results come back
//! as inputs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{debug, warn};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::apply::{Applied, apply, proof_for};
use super::claim::{CLAIM_TIMEOUT, Claim, ClaimStep, hold_after, hold_end};
use super::input::Input;
use super::message::{Event, Message};
use super::outbox::Outbox;
use super::part::SharedPart;
use super::store::{self, Change};
use super::targets::{Target, Targets};
use super::tracked::{Key, ProbeLead, Tracked};
use crate::gateway::backend_question::QuestionQueue;
use crate::gateway::backend_queue::BackendQueue;
use crate::routing::health::availability::AvailabilityCell;
use crate::shared::Shared;

/// How often what is unavailable is looked at, while something is.
const TICK: Duration = Duration::from_millis(20);
/// A message that is not understood is logged at most this often.
const BROKEN_MESSAGE_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The status of a response that refuses a credential.
const UNAUTHORIZED: u16 = 401;

pub(super) struct Worker {
    outbox: Outbox,
    questions: Arc<QuestionQueue>,
    queue: Arc<BackendQueue>,
    leads: Arc<ArcSwap<Vec<ProbeLead>>>,
    inputs: mpsc::Sender<Input>,
    targets: Arc<Targets>,
    tracked: HashMap<Key, Tracked>,
    broken_message_logged_at: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        shared: &Shared,
        questions: Arc<QuestionQueue>,
        queue: Arc<BackendQueue>,
        leads: Arc<ArcSwap<Vec<ProbeLead>>>,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        Self {
            outbox: Outbox::new(Arc::clone(&shared.link), Arc::clone(&shared.instances), inputs.clone()),
            questions,
            queue,
            leads,
            inputs,
            targets: Arc::default(),
            tracked: HashMap::new(),
            broken_message_logged_at: None,
        }
    }

    pub(super) async fn run(mut self, mut receiver: mpsc::Receiver<Input>) {
        let mut link_state = self.outbox.link.watch_state();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_busy = !self.tracked.is_empty() || !self.outbox.is_empty();
            tokio::select! {
                input = receiver.recv() => match input {
                    Some(input) => self.on_input(input, Instant::now()),
                    None => return,
                },
                Ok(()) = link_state.changed() => {
                    let is_up = *link_state.borrow_and_update();
                    self.on_link_changed(is_up, Instant::now());
                }
                _ = ticks.tick(), if is_busy => self.on_tick(Instant::now()),
            }
        }
    }

    fn on_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Found(backend, part, status) => self.on_found_unavailable(&(backend, part), status, now),
            Input::Received(bytes) => self.on_message(&bytes, None, now),
            Input::Kept(bytes, left) => self.on_message(&bytes, Some(left), now),
            Input::Targets(targets) => self.on_targets(targets),
            Input::Claimed(key, is_won, hold) => self.on_claimed(&key, is_won, hold, now),
            Input::Written => self.outbox.on_written(),
        }
    }

    fn on_targets(&mut self, targets: Arc<Targets>) {
        self.targets = targets;
        let targets = &self.targets;
        self.tracked.retain(|(backend, part), tracked| {
            let Some(target) = targets.named(backend.as_str()) else { return false };
            let Some(cell) = part.cell(target) else { return false };
            tracked.is_own &= target.url == tracked.target.url;
            (tracked.target, tracked.cell) = (Arc::clone(target), cell);
            true
        });
        if self.outbox.link.is_up() {
            self.read_all();
        }
    }

    fn on_link_changed(&mut self, is_up: bool, now: Instant) {
        for tracked in self.tracked.values_mut() {
            tracked.cell.release_probe();
            tracked.claim = Claim::None;
        }
        self.show_leads();
        if !is_up {
            // Each instance probes for itself.
            return self.outbox.clear();
        }
        self.read_all();
        // The server may have been wiped, and others have missed messages.
        let own = self.tracked.iter_mut().filter(|(_, tracked)| tracked.is_own);
        let forget = |(key, tracked): (&Key, &mut Tracked)| {
            tracked.announced = None;
            key.clone()
        };
        let keys: Vec<Key> = own.map(forget).collect();
        keys.iter().for_each(|key| self.announce(key, now));
    }

    /// Learns what the server has kept.
    fn read_all(&self) {
        let (link, inputs) = (Arc::clone(&self.outbox.link), self.inputs.clone());
        let targets = self.targets.list().to_vec();
        tokio::spawn(async move {
            for target in targets {
                match store::read(&link, &target).await {
                    Ok(found) => {
                        for (message, left) in found {
                            let _ = inputs.send(Input::Kept(message, left)).await;
                        }
                    }
                    Err(problem) => {
                        debug!("shared.redis: what is unavailable could not be read: {problem}");
                        return;
                    }
                }
            }
        });
    }

    /// A request or question of this instance has found something unavailable.
    fn on_found_unavailable(&mut self, key: &Key, status: Option<u16>, now: Instant) {
        let Some(target) = self.targets.named(key.0.as_str()).map(Arc::clone) else { return };
        let Some(cell) = key.1.cell(&target) else { return };
        let Some(view) = cell.shared_view(now) else { return };
        let tracked =
            self.tracked.entry(key.clone()).or_insert_with(|| Tracked::new(&target, cell, &view, now));
        tracked.is_own = true;
        tracked.status = status;
        (tracked.met_at, tracked.quiet_at) = (Some(now), now);
        let has_led = matches!(tracked.claim, Claim::Own { .. });
        if has_led {
            tracked.claim = Claim::None;
            self.outbox.release_claim(key);
            self.show_leads();
        }
        if key.1.is_announced() {
            self.announce(key, now);
        } else if has_led && key.1.has_reason(view.unavailable.reason) {
            // The probe has failed: the others go on waiting.
            let left = view.unavailable.until.saturating_duration_since(now);
            let event = Event::Unavailable { left, status: None, proof: None };
            self.outbox.publish(&target, &key.1, view.unavailable.reason, event);
        }
    }

    /// Tells the others of something that this instance has found unavailable, unless they know.
    fn announce(&mut self, key: &Key, now: Instant) {
        let Some(tracked) = self.tracked.get_mut(key) else { return };
        let Some(view) = tracked.cell.shared_view(now) else { return };
        let unavailable = view.unavailable;
        if !key.1.is_announced()
            || !key.1.has_reason(unavailable.reason)
            || unavailable.until <= now
            || tracked.is_announced(unavailable, now)
        {
            return;
        }
        tracked.announced = Some((unavailable.reason, unavailable.until));
        tracked.claim = Claim::None;
        let left = unavailable.until - now;
        let proof = proof_for(&tracked.target, &key.1);
        let event = Event::Unavailable { left, status: tracked.status, proof };
        let message = self.outbox.publish(&tracked.target, &key.1, unavailable.reason, event);
        // What is about the network of this instance is not kept for those that start later.
        if tracked.status.is_none_or(|status| status == UNAUTHORIZED) {
            self.outbox.write(key.clone(), Change::Unavailable { message, left });
        }
    }

    /// A message of an instance. `left` is the time that is left if the server has kept it.
    fn on_message(&mut self, bytes: &[u8], left: Option<Duration>, now: Instant) {
        let mut message = match Message::parse(bytes) {
            Ok(message) => message,
            Err(problem) => return self.log_broken_message(problem, now),
        };
        if message.from == self.outbox.instances.own_id() {
            return;
        }
        if let (Event::Unavailable { left: told, .. }, Some(left)) = (&mut message.event, left) {
            *told = left.min(*told);
        }
        // Another instance may have another file.
        let target = self.targets.named(&message.backend).filter(|target| target.url == message.url);
        let Some(target) = target.map(Arc::clone) else { return };
        let Some(cell) = message.part.cell(&target) else { return };
        let key = (target.name.clone(), message.part.clone());
        if let Event::Probing { left } = message.event {
            return self.on_other_probes(key, &target, cell, &message, left, now);
        }
        let told_at = self.tracked.get(&key).and_then(|tracked| tracked.told_at(&message.from));
        match apply(&target, &cell, &message, told_at, now) {
            Applied::Changed => self.on_applied(key, &target, cell, &message, now),
            Applied::Ask(question) => self.questions.push(question),
            Applied::Nothing => {}
        }
    }

    fn on_applied(
        &mut self,
        key: Key,
        target: &Arc<Target>,
        cell: Arc<AvailabilityCell>,
        message: &Message,
        now: Instant,
    ) {
        let before = self.tracked.remove(&key);
        if before.as_ref().is_some_and(|before| matches!(before.claim, Claim::Own { .. })) {
            self.outbox.release_claim(&key);
        }
        if let Some(view) = cell.shared_view(now) {
            let mut tracked = Tracked::new(target, cell, &view, now);
            if let Some(before) = before {
                (tracked.is_own, tracked.status, tracked.met_at) =
                    (before.is_own, before.status, before.met_at);
            }
            tracked.announced = Some((view.unavailable.reason, view.unavailable.until));
            tracked.told = Some((message.from.clone(), now));
            self.tracked.insert(key, tracked);
        }
        if matches!(message.event, Event::Over { .. }) {
            self.queue.wake();
        }
        self.show_leads();
    }

    fn on_other_probes(
        &mut self,
        key: Key,
        target: &Arc<Target>,
        cell: Arc<AvailabilityCell>,
        message: &Message,
        left: Duration,
        now: Instant,
    ) {
        let view = cell.shared_view(now).filter(|view| view.unavailable.reason == message.reason);
        let Some(view) = view else { return };
        let tracked = self.tracked.entry(key).or_insert_with(|| Tracked::new(target, cell, &view, now));
        if matches!(tracked.claim, Claim::Own { .. }) {
            return;
        }
        if left.is_zero() {
            // It has no request to probe with.
            tracked.claim = Claim::None;
            tracked.cell.release_probe();
            self.queue.wake();
        } else {
            let remaining = view.unavailable.until.saturating_duration_since(now);
            let until = now + left.min(remaining + hold_after(message.reason) * 2);
            tracked.claim = Claim::Other { id: Some(message.from.clone()), until };
            tracked.cell.hold_probe(hold_end(until));
        }
        self.show_leads();
    }

    /// The answer to a claim for so long; `None` if there was none.
    fn on_claimed(&mut self, key: &Key, is_won: Option<bool>, hold: Duration, now: Instant) {
        let tracked = self.tracked.get_mut(key).filter(|tracked| tracked.claim == Claim::Asked);
        let Some(tracked) = tracked else {
            if is_won == Some(true) {
                self.outbox.release_claim(key);
            }
            return;
        };
        match is_won {
            Some(true) => {
                tracked.claim.on_won(hold, now);
                tracked.cell.release_probe();
                let event = Event::Probing { left: hold };
                self.outbox.publish(&tracked.target, &key.1, tracked.last_reason, event);
            }
            Some(false) => {
                let until = now + hold;
                tracked.claim = Claim::Other { id: None, until };
                tracked.cell.hold_probe(hold_end(until));
            }
            None => {
                tracked.claim = Claim::Failed { retry_at: now + CLAIM_TIMEOUT };
                tracked.cell.release_probe();
            }
        }
        self.queue.wake();
        self.show_leads();
    }

    fn on_tick(&mut self, now: Instant) {
        let (mut over, mut steps) = (Vec::new(), Vec::new());
        for (key, tracked) in &mut self.tracked {
            if key.1 == SharedPart::Credential {
                // A new secret ends its outage.
                tracked.target.health.refresh_credential_availability(&tracked.target.credential);
            }
            let Some(view) = tracked.cell.shared_view(now) else {
                over.push(key.clone());
                continue;
            };
            tracked.see(&view, now);
            if self.outbox.link.is_up() && key.1.has_reason(view.unavailable.reason) {
                let wanted_at = tracked.met_at.max(view.wanted_at);
                steps.push((key.clone(), tracked.claim.next_step(&view, wanted_at, now)));
            }
        }
        for key in over {
            self.on_over(&key, now);
        }
        for (key, step) in steps {
            self.take_step(&key, step);
        }
        self.show_leads();
        self.outbox.flush(&self.targets);
    }

    /// Something that was unavailable is available, as a request or question of this instance has shown.
    fn on_over(&mut self, key: &Key, now: Instant) {
        let Some(tracked) = self.tracked.remove(key) else { return };
        if !key.1.has_reason(tracked.last_reason) {
            return;
        }
        let age = now.saturating_duration_since(tracked.last_known_at());
        let event = Event::Over { age, proof: proof_for(&tracked.target, &key.1) };
        self.outbox.publish(&tracked.target, &key.1, tracked.last_reason, event);
        self.outbox.write(key.clone(), Change::Over);
    }

    fn take_step(&mut self, key: &Key, step: ClaimStep) {
        let Some(tracked) = self.tracked.get(key) else { return };
        let (target, reason) = (Arc::clone(&tracked.target), tracked.last_reason);
        let (link, inputs, key) = (Arc::clone(&self.outbox.link), self.inputs.clone(), key.clone());
        let own_id = self.outbox.instances.own_id().to_owned();
        match step {
            ClaimStep::Nothing => {}
            ClaimStep::Claim(hold) => {
                tokio::spawn(async move {
                    let claimed = store::claim(&link, &target, &key.1, &own_id, hold, CLAIM_TIMEOUT).await;
                    let _ = inputs.send(Input::Claimed(key, claimed.ok(), hold)).await;
                });
            }
            ClaimStep::Renew(hold) => {
                self.outbox.publish(&target, &key.1, reason, Event::Probing { left: hold });
                tokio::spawn(async move { store::renew(&link, &target, &key.1, &own_id, hold).await });
            }
            ClaimStep::GiveUp => {
                self.outbox.release_claim(&key);
                self.outbox.flush(&self.targets);
                self.outbox.publish(&target, &key.1, reason, Event::Probing { left: Duration::ZERO });
            }
        }
    }

    /// Shows who leads which probe.
    fn show_leads(&self) {
        let own_id = self.outbox.instances.own_id();
        let mut leads: Vec<ProbeLead> =
            self.tracked.iter().filter_map(|(key, tracked)| tracked.lead(key, own_id)).collect();
        leads.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
        if **self.leads.load() != leads {
            self.leads.store(Arc::new(leads));
        }
    }

    fn log_broken_message(&mut self, problem: &str, now: Instant) {
        let is_due = self.broken_message_logged_at.is_none_or(|at| now >= at + BROKEN_MESSAGE_LOG_INTERVAL);
        if is_due {
            self.broken_message_logged_at = Some(now);
            warn!(
                "shared.redis: a message about unavailable backends is ignored: {problem}. Do instances of different \
                 versions use the same prefix?"
            );
        }
    }
}
