//! The names of keys and channels. Each has the version of what is kept there, so that instances of different versions
//! never misread each other.

/// The version of the layout of all values.
const LAYOUT_VERSION: u32 = 1;

/// The keys and channels below `shared.redis.prefix`.
#[derive(Clone, Debug)]
pub struct KeySpace {
    prefix: String,
}

impl KeySpace {
    /// The key space below a prefix.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: format!("{prefix}:{LAYOUT_VERSION}") }
    }

    /// A key that stands alone.
    pub fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// A key of an owner, such as a client. All keys of one owner have the same hash tag, so that a cluster keeps them
    /// on one node and a script can use several of them.
    /// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>
    pub fn key_of(&self, owner: &str, name: &str) -> String {
        // A brace in the name of an owner would end the tag.
        let owner = owner.replace(['{', '}'], "_");
        format!("{{{}:{owner}}}:{name}", self.prefix)
    }

    /// The channel of a topic.
    pub fn channel(&self, topic: &str) -> String {
        format!("{}:channel:{topic}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_prefix_the_version_and_one_tag_for_each_owner() {
        let keys = KeySpace::new("x");
        assert_eq!(keys.key("instances"), "x:1:instances");
        assert_eq!(keys.key_of("team-a", "tokens"), "{x:1:team-a}:tokens");
        assert_eq!(keys.key_of("a}{b", "tokens"), "{x:1:a__b}:tokens");
        assert_eq!(keys.channel("cooldowns"), "x:1:channel:cooldowns");
    }
}
