//! What the report of `aoai-lb usage` has a row for: `--by`.

use std::ffi::OsStr;

use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command, ValueEnum};

/// What records can be grouped by. Each is a column of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum GroupingKey {
    /// The UTC day on which the request arrived.
    Day,
    /// The name of the client.
    Client,
    /// The name of the deployment, in lower case.
    Deployment,
    /// The name of the backend.
    Backend,
    /// The class of the request: interactive, standard or batch.
    Class,
    /// The service tier that has served the request, such as default or flex.
    Tier,
    /// Why no backend of a higher tier has answered.
    Spilled,
}

impl GroupingKey {
    /// The name of the column, which is also how `--by` calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Client => "client",
            Self::Deployment => "deployment",
            Self::Backend => "backend",
            Self::Class => "class",
            Self::Tier => "tier",
            Self::Spilled => "spilled",
        }
    }
}

/// The texts of the keys of a row, in the order of the columns.
pub(super) type RowKey = Vec<Option<String>>;

/// The order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// By the text of the keys, from left to right.
    Keys,
    /// By the cost if the report has it, and by the total of tokens, the largest first; equal rows by the text of the
    /// keys.
    Tokens,
}

/// What the rows of the report are, and their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grouping {
    /// The columns from left to right. There is at least one, and none twice.
    pub(super) keys: Vec<GroupingKey>,
    pub(super) order: RowOrder,
}

impl Default for Grouping {
    /// A row for each day, client, deployment and backend, in this order.
    fn default() -> Self {
        let keys = vec![GroupingKey::Day, GroupingKey::Client, GroupingKey::Deployment, GroupingKey::Backend];
        Self { keys, order: RowOrder::Keys }
    }
}

impl Grouping {
    /// The rows of the report about what a lower tier has answered: these, or by default one for each deployment, reason
    /// and backend. The reason is always among them.
    pub(super) fn for_spills(by: Option<Self>) -> Self {
        let order = RowOrder::Tokens;
        let Some(mut by) = by else {
            let keys = vec![GroupingKey::Deployment, GroupingKey::Spilled, GroupingKey::Backend];
            return Self { keys, order };
        };
        if !by.keys.contains(&GroupingKey::Spilled) {
            by.keys.push(GroupingKey::Spilled);
        }
        by
    }
}

/// Parses the list of keys of `--by`. The rows of such a report are sorted by tokens.
#[derive(Clone)]
pub(super) struct GroupingParser;

impl TypedValueParser for GroupingParser {
    type Value = Grouping;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Grouping, clap::Error> {
        let mut keys = Vec::new();
        for name in value.to_string_lossy().split(',') {
            let key = EnumValueParser::<GroupingKey>::new();
            let key = key.parse_ref(command, argument, OsStr::new(name.trim()))?;
            if keys.contains(&key) {
                let option = argument.map(ToString::to_string).unwrap_or_default();
                let problem = format!("'{}' is given twice for '{option}'", key.name());
                return Err(command.clone().error(ErrorKind::ValueValidation, problem));
            }
            keys.push(key);
        }
        Ok(Grouping { keys, order: RowOrder::Tokens })
    }

    /// For the help, the manual page and completions.
    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let keys = GroupingKey::value_variants().iter();
        Some(Box::new(keys.filter_map(ValueEnum::to_possible_value)))
    }
}

#[cfg(test)]
mod tests {
    use super::GroupingKey::{Backend, Class, Client, Day, Deployment};
    use super::*;

    fn parse(text: &str) -> Result<Grouping, String> {
        let by = Arg::new("by").long("by").value_name("KEYS").value_parser(GroupingParser);
        let matches = Command::new("usage").arg(by).try_get_matches_from(["usage", "--by", text]);
        matches.map(|mut matches| matches.remove_one("by").unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn by_takes_a_list_of_keys_in_the_order_of_the_columns() {
        for (text, expected) in [
            ("client", vec![Client]),
            ("class,client", vec![Class, Client]),
            ("client, deployment ,class", vec![Client, Deployment, Class]),
            ("backend,day", vec![Backend, Day]),
            ("day,client,deployment,backend,class,tier,spilled", GroupingKey::value_variants().to_vec()),
        ] {
            let expected = Grouping { keys: expected, order: RowOrder::Tokens };
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn by_says_what_is_wrong_with_a_list_and_what_would_be_right() {
        let names = "[possible values: day, client, deployment, backend, class, tier, spilled]";
        for (text, expected) in [
            ("model", vec!["invalid value 'model' for '--by <KEYS>'", names]),
            ("client,klass", vec!["invalid value 'klass' for '--by <KEYS>'", names]),
            ("Client", vec!["invalid value 'Client' for '--by <KEYS>'", names]),
            ("client;class", vec!["invalid value 'client;class'", names]),
            ("", vec!["a value is required for '--by <KEYS>'", names]),
            ("client,", vec!["a value is required for '--by <KEYS>'", names]),
            ("client,,class", vec!["a value is required for '--by <KEYS>'", names]),
            ("client,class,client", vec!["'client' is given twice for '--by <KEYS>'"]),
            ("day, day", vec!["'day' is given twice for '--by <KEYS>'"]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(expected.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }

    #[test]
    fn a_column_has_the_name_that_by_takes() {
        for key in GroupingKey::value_variants() {
            assert_eq!(key.to_possible_value().unwrap().get_name(), key.name());
        }
    }
}
