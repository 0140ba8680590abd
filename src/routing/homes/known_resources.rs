//! The resources of a configuration, found by their tags.

use std::collections::HashMap;

use super::Homes;
use super::home::ResourceTag;

/// The resources of a configuration. An entry whose resource is not among them is as good as none; it counts
/// again when the resource comes back. Backends may change their names: only the resource's matters.
#[derive(Clone, Debug, Default)]
pub struct KnownResources<T> {
    by_tag: HashMap<ResourceTag, Option<T>>,
}

impl<T> KnownResources<T> {
    /// These resources, each with its name.
    pub fn new<'n>(homes: &Homes, resources: impl IntoIterator<Item = (&'n str, T)>) -> Self {
        let mut by_tag = HashMap::new();
        for (name, resource) in resources {
            // Two names with one tag are hardly ever met. What lives on either is found by asking then.
            by_tag
                .entry(homes.resource_tag(name))
                .and_modify(|known| *known = None)
                .or_insert(Some(resource));
        }
        Self { by_tag }
    }

    /// The resource of this tag; `None` if the configuration has none.
    pub fn get(&self, tag: ResourceTag) -> Option<&T> {
        self.by_tag.get(&tag)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_that_has_left_the_configuration_is_not_found_until_it_is_back() {
        let homes = Homes::new(1 << 16);
        let (east, west) = (homes.resource_tag("east:443"), homes.resource_tag("west:443"));
        let before = KnownResources::new(&homes, [("east:443", 0), ("west:443", 1)]);
        assert_eq!((before.get(east), before.get(west)), (Some(&0), Some(&1)));
        let after = KnownResources::new(&homes, [("west:443", 0)]);
        assert_eq!((after.get(east), after.get(west)), (None, Some(&0)));
        let doubled = KnownResources::new(&homes, [("west:443", 0), ("west:443", 1)]);
        assert_eq!(doubled.get(west), None, "which of them is unknown");
    }
}
