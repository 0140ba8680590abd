//! The choices of the requests in a line: which backends they may be sent to. Many have the same one.

/// The different choices of the requests that wait in one line.
#[derive(Debug)]
pub(super) struct Choices<C> {
    choices: Vec<Option<UsedChoice<C>>>,
}

#[derive(Debug)]
struct UsedChoice<C> {
    choice: C,
    requests: usize,
}

/// The number of a choice in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChoiceIndex(usize);

impl<C> Default for Choices<C> {
    fn default() -> Self {
        Self { choices: Vec::new() }
    }
}

impl<C: PartialEq> Choices<C> {
    /// Counts a request with this choice.
    pub(super) fn enter(&mut self, choice: C) -> ChoiceIndex {
        let is_same = |used: &Option<UsedChoice<C>>| used.as_ref().is_some_and(|used| used.choice == choice);
        let existing = self.choices.iter().position(is_same);
        let index = existing.or_else(|| self.choices.iter().position(Option::is_none));
        let index = index.unwrap_or_else(|| {
            self.choices.push(None);
            self.choices.len() - 1
        });
        if let Some(slot) = self.choices.get_mut(index) {
            slot.get_or_insert(UsedChoice { choice, requests: 0 }).requests += 1;
        }
        ChoiceIndex(index)
    }

    /// A request with this choice no longer waits.
    pub(super) fn leave(&mut self, index: ChoiceIndex) {
        let Some(slot) = self.choices.get_mut(index.0) else { return };
        if let Some(used) = slot {
            used.requests = used.requests.saturating_sub(1);
            if used.requests == 0 {
                *slot = None;
            }
        }
    }

    /// The choice of this number.
    pub(super) fn get(&self, index: ChoiceIndex) -> Option<&C> {
        Some(&self.choices.get(index.0)?.as_ref()?.choice)
    }

    /// All choices of requests that wait.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ChoiceIndex, &C)> {
        let choices = self.choices.iter().enumerate();
        choices.filter_map(|(index, used)| Some((ChoiceIndex(index), &used.as_ref()?.choice)))
    }
}
