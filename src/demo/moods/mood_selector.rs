//! Selects the mood of each request, and keeps the position within sequences.

use std::collections::HashMap;

use super::mood::Mood;

/// A mood and the state that its sequences need.
#[derive(Debug)]
pub(in crate::demo) enum MoodSelector {
    /// The same mood for every request.
    Fixed(Mood),
    /// One step per request; the last one stays.
    Sequence { steps: Vec<MoodSelector>, next_step: usize },
    /// A selector for each deployment.
    PerDeployment {
        selectors_by_deployment: HashMap<String, MoodSelector>,
        default_selector: Box<MoodSelector>,
    },
}

impl MoodSelector {
    pub(in crate::demo) fn new(mood: Mood) -> Self {
        match mood {
            Mood::Sequence(moods) => {
                Self::Sequence { steps: moods.into_iter().map(Self::new).collect(), next_step: 0 }
            }
            Mood::PerDeployment { moods_by_deployment, default_mood } => Self::PerDeployment {
                selectors_by_deployment: moods_by_deployment
                    .into_iter()
                    .map(|(name, mood)| (name, Self::new(mood)))
                    .collect(),
                default_selector: Box::new(Self::new(*default_mood)),
            },
            mood => Self::Fixed(mood),
        }
    }

    /// Whether the mood of a request depends on its deployment, so that the body may have to be read first.
    pub(in crate::demo) fn depends_on_deployment(&self) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Sequence { steps, .. } => steps.iter().any(Self::depends_on_deployment),
            Self::PerDeployment { .. } => true,
        }
    }

    /// The mood of a handshake that names no deployment. A mood that is not about connections is left for the
    /// first turn on the WebSocket.
    pub(in crate::demo) fn next_handshake_mood(&mut self) -> Mood {
        let is_about_connections = self.current_mood().is_about_connections();
        if is_about_connections { self.next_mood(None) } else { Mood::Calm }
    }

    /// The mood of the next request that names no deployment.
    fn current_mood(&self) -> &Mood {
        match self {
            Self::Fixed(mood) => mood,
            Self::Sequence { steps, next_step } => {
                let current = (*next_step).min(steps.len().saturating_sub(1));
                steps.get(current).map_or(&Mood::Calm, Self::current_mood)
            }
            Self::PerDeployment { default_selector, .. } => default_selector.current_mood(),
        }
    }

    /// The mood of the next request; advances sequences.
    pub(in crate::demo) fn next_mood(&mut self, deployment: Option<&str>) -> Mood {
        match self {
            Self::Fixed(mood) => mood.clone(),
            Self::Sequence { steps, next_step } => {
                let last = steps.len().saturating_sub(1);
                let current = (*next_step).min(last);
                *next_step += 1;
                steps.get_mut(current).map_or(Mood::Calm, |selector| selector.next_mood(deployment))
            }
            Self::PerDeployment { selectors_by_deployment, default_selector } => deployment
                .and_then(|name| selectors_by_deployment.get_mut(name))
                .unwrap_or(default_selector)
                .next_mood(deployment),
        }
    }

    /// Whether a connection that is accepted now is reset at once.
    pub(in crate::demo) fn resets_on_accept(&self) -> bool {
        matches!(self, Self::Fixed(Mood::ResetOnAccept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_stays_at_its_last_mood_and_each_deployment_has_its_own() {
        let sequence = Mood::Sequence(vec![Mood::Mute, Mood::HighDemand]);
        let moods_by_deployment = HashMap::from([("a".to_owned(), sequence)]);
        let mood = Mood::PerDeployment { moods_by_deployment, default_mood: Box::new(Mood::Calm) };
        let mut selector = MoodSelector::new(mood);
        assert!(selector.depends_on_deployment());
        let moods: Vec<Mood> =
            [Some("a"), None, Some("b"), Some("a"), Some("a")].map(|name| selector.next_mood(name)).into();
        assert_eq!(moods, [Mood::Mute, Mood::Calm, Mood::Calm, Mood::HighDemand, Mood::HighDemand]);
    }

    #[test]
    fn an_empty_sequence_is_calm() {
        assert_eq!(MoodSelector::new(Mood::Sequence(Vec::new())).next_mood(None), Mood::Calm);
    }
}
