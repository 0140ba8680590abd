//! What a record tells about the resource that has what a request refers to.

use std::time::Duration;

use crate::names::ResourceName;

/// How a request that refers to objects, or that names no deployment, has found its resource.
#[derive(Clone, Debug)]
pub struct AffinityRecord {
    /// What kind of object the first reference names; `None` if there is none.
    pub by: Option<&'static str>,
    /// `learned`, `asked` or `default`.
    pub how: &'static str,
    /// The resource that has it, or that was tried last; `None` if none was tried.
    pub resource: Option<ResourceName>,
    /// The resources that were asked for it, in their order.
    pub asked: Vec<AskedResource>,
    /// How long the request waited for its resource: for the end of a cooldown, until the object could be read, or
    /// for its turn to ask.
    pub waited: Duration,
    /// How long after it was made the object could be read, if it could not at first.
    pub read_lag: Option<Duration>,
}

/// A resource that was asked for an object.
#[derive(Clone, Debug)]
pub struct AskedResource {
    /// Its name.
    pub resource: ResourceName,
    /// Whether it has the object.
    pub answer: AskAnswer,
}

/// What a resource said about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskAnswer {
    /// It has the object.
    Accepted,
    /// It does not have it.
    Denied,
}

impl AskAnswer {
    /// The value of the label `outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Denied => "denied",
        }
    }
}

impl AffinityRecord {
    /// The resource that is known to have what the request refers to: it was remembered, or said so.
    pub fn home(&self) -> Option<&ResourceName> {
        match self.how {
            "learned" => self.resource.as_ref(),
            _ => self
                .asked
                .iter()
                .rfind(|asked| asked.answer == AskAnswer::Accepted)
                .map(|asked| &asked.resource),
        }
    }

    /// The resources that said that they do not have it, each once.
    pub fn denying_resources(&self) -> Vec<&ResourceName> {
        let mut resources = Vec::new();
        for asked in self.asked.iter().filter(|asked| asked.answer == AskAnswer::Denied) {
            if !resources.contains(&&asked.resource) {
                resources.push(&asked.resource);
            }
        }
        resources
    }

    /// How many resources said that they do not have it, counting one that was asked again as often.
    pub fn denial_count(&self) -> usize {
        self.asked.iter().filter(|asked| asked.answer == AskAnswer::Denied).count()
    }

    /// The memory that it holds besides itself, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.asked.capacity() * size_of::<AskedResource>()
    }
}
