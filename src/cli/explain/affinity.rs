//! What a request refers to, and where that is: the memory of the process as its log tells it, and the words for it.

use std::sync::Arc;
use std::time::Duration;

use crate::azure::ReferenceKind;
use crate::azure::response::id_time::time_of_id;
use crate::config::Config;
use crate::gateway::homes_keeper::read_homes;
use crate::gateway::{Gateway, Moment, RequestAffinity};
use crate::routing::episodes::duration_in_words;
use crate::routing::homes::{Home, Homes};
use crate::routing::retry_plan::ResourceSearch;
use crate::state::homes_log::FILE_NAME;

/// The longest id that is printed.
const MAX_SHOWN_ID_CHARS: usize = 64;

/// The objects that a request refers to: the kind and the id of each.
pub(super) type References = Vec<(ReferenceKind, String)>;

/// What a process remembers of where objects are, and where that was read.
pub(super) struct RememberedHomes {
    /// What is remembered; `None` if there is no log that can be read.
    pub(super) homes: Option<Arc<Homes>>,
    /// Where it was looked for, and why in vain.
    source: String,
}

impl RememberedHomes {
    /// Reads the log in the state directory. The process may write it meanwhile.
    pub(super) fn read(config: &Config) -> Self {
        let Some(directory) = &config.server.state_directory else {
            return Self { homes: None, source: "no state directory".to_owned() };
        };
        let file = directory.join(FILE_NAME);
        match read_homes(directory, config.affinity.memory_bytes) {
            Ok(Some(homes)) => Self { homes: Some(Arc::new(homes)), source: file.display().to_string() },
            Ok(None) => Self { homes: None, source: format!("{}, which does not exist", file.display()) },
            Err(problem) => {
                Self { homes: None, source: format!("{}, which cannot be read: {problem}", file.display()) }
            }
        }
    }

    /// Where each object is that the request refers to, a line each.
    pub(super) fn describe_objects(
        &self,
        gateway: &Gateway,
        references: &References,
        now: Moment,
    ) -> Vec<String> {
        let lines = references.iter().map(|(kind, id)| {
            let homes = &gateway.process_state.homes;
            let home = homes.find(homes.key_of(id.as_bytes()), now.unix_seconds());
            self.describe_object(gateway, *kind, id, home, now)
        });
        lines.collect()
    }

    fn describe_object(
        &self,
        gateway: &Gateway,
        kind: ReferenceKind,
        id: &str,
        home: Option<Home>,
        now: Moment,
    ) -> String {
        let shown: String = id.chars().take(MAX_SHOWN_ID_CHARS).collect();
        let object = format!("{shown} ({})", kind.as_str().replace('_', " "));
        let Some(home) = home else {
            return format!("{object}: not remembered in {}", self.source);
        };
        let Some(resource) = gateway.resources.iter().find(|resource| resource.tag == home.resource) else {
            return format!(
                "{object}: on a resource that is not in this configuration, as {} tells",
                self.source
            );
        };
        let backends: Vec<&str> = gateway.backends_of(resource).map(|name| name.as_str()).collect();
        let age = match home.made_at {
            Some(made_at) => format!(", made {} ago", age(made_at, now)),
            None => String::new(),
        };
        format!(
            "{object}: on the resource {} (backends: {}){age}, as {} tells",
            resource.name,
            backends.join(", "),
            self.source
        )
    }
}

/// What the resource of the objects means for where the request goes.
pub(super) fn describe_search(
    affinity: &RequestAffinity,
    gateway: &Gateway,
    references: &References,
    now: Moment,
) -> Vec<String> {
    match &affinity.search {
        None => vec!["none: the call goes to the default backend (requests.home)".to_owned()],
        Some(ResourceSearch::Home { resource_index, lags_until }) => {
            let Some(resource) = gateway.resources.get(*resource_index) else { return Vec::new() };
            let mut lines = vec![format!("only backends of {} get the request", resource.name)];
            if let Some(until) = lags_until {
                let remaining = duration_in_words(until.saturating_duration_since(now.instant));
                lines.push(format!(
                    "if the resource does not have it yet, it is asked again for {remaining} (affinity.read_lag)"
                ));
            }
            lines
        }
        Some(ResourceSearch::Ask { further_rounds, max_further }) => {
            let limit = match *max_further {
                u32::MAX => String::new(),
                limit => format!(", at most {limit} further ones (affinity.ask)"),
            };
            vec![
                format!("the resources are asked in the order below until one has it{limit}"),
                describe_rounds(further_rounds, references, now),
            ]
        }
    }
}

/// What follows if no resource has the object.
fn describe_rounds(further_rounds: &[Duration], references: &References, now: Moment) -> String {
    let late = references.iter().filter(|(kind, _)| kind.may_lag());
    let made_at = late.clone().filter_map(|(_, id)| time_of_id(id, now.unix_seconds())).max();
    let reason = match (late.count(), made_at) {
        (0, _) => "such an object can be read as soon as it is made".to_owned(),
        (_, Some(made_at)) => format!("by its id it was made {} ago", age(made_at, now)),
        (_, None) => "its id does not tell when it was made".to_owned(),
    };
    let rounds: Vec<String> =
        further_rounds.iter().map(|wait| humantime::format_duration(*wait).to_string()).collect();
    match rounds.as_slice() {
        [] => format!("{reason}: if all say no, the client gets the first answer"),
        rounds => format!(
            "{reason}: if all say no, they are asked again after {} (affinity.read_lag); then the client gets the first \
             answer",
            rounds.join(" and then after ")
        ),
    }
}

/// How long ago that was, in Unix seconds.
fn age(made_at: u32, now: Moment) -> String {
    duration_in_words(Duration::from_secs(u64::from(now.unix_seconds().saturating_sub(made_at))))
}
