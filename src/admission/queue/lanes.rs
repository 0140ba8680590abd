//! The lanes of a line: requests of one lane can use the same backends.

/// The lanes of the requests that wait in one line.
#[derive(Debug)]
pub(super) struct Lanes<L> {
    lanes: Vec<Option<UsedLane<L>>>,
}

#[derive(Debug)]
struct UsedLane<L> {
    lane: L,
    requests: usize,
}

/// The number of a lane in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneIndex(usize);

impl<L> Default for Lanes<L> {
    fn default() -> Self {
        Self { lanes: Vec::new() }
    }
}

impl<L: PartialEq> Lanes<L> {
    /// Counts a request in this lane.
    pub(super) fn enter(&mut self, lane: L) -> LaneIndex {
        let is_same = |used: &Option<UsedLane<L>>| used.as_ref().is_some_and(|used| used.lane == lane);
        let existing = self.lanes.iter().position(is_same);
        let index = existing.or_else(|| self.lanes.iter().position(Option::is_none));
        let index = index.unwrap_or_else(|| {
            self.lanes.push(None);
            self.lanes.len() - 1
        });
        if let Some(slot) = self.lanes.get_mut(index) {
            slot.get_or_insert(UsedLane { lane, requests: 0 }).requests += 1;
        }
        LaneIndex(index)
    }

    /// A request of this lane no longer waits.
    pub(super) fn leave(&mut self, index: LaneIndex) {
        let Some(slot) = self.lanes.get_mut(index.0) else { return };
        if let Some(used) = slot {
            used.requests = used.requests.saturating_sub(1);
            if used.requests == 0 {
                *slot = None;
            }
        }
    }

    /// The lane of this number.
    pub(super) fn get(&self, index: LaneIndex) -> Option<&L> {
        Some(&self.lanes.get(index.0)?.as_ref()?.lane)
    }

    /// The lanes of requests that wait.
    pub(super) fn iter(&self) -> impl Iterator<Item = (LaneIndex, &L)> {
        let lanes = self.lanes.iter().enumerate();
        lanes.filter_map(|(index, used)| Some((LaneIndex(index), &used.as_ref()?.lane)))
    }
}
