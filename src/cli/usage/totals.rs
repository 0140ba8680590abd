//! The counts of the report of `aoai-lb usage`.

use serde::{Serialize, Serializer};

/// The counts of one row of the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct UsageTotals {
    pub(super) requests: u64,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) reasoning_tokens: u64,
    pub(super) total_tokens: u64,
    #[serde(skip)]
    pub(super) audio: AudioTotals,
}

/// Shown only if there is any audio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct AudioTotals {
    pub(super) input_audio_tokens: u64,
    pub(super) output_audio_tokens: u64,
    pub(super) cached_audio_tokens: u64,
    #[serde(rename = "audio_seconds", serialize_with = "serialize_millis_as_seconds")]
    pub(super) audio_millis: u64,
}

impl UsageTotals {
    /// Adds the counts of another.
    pub(super) fn add(&mut self, other: &Self) {
        let counts = self.counts_mut();
        for (total, addend) in counts.into_iter().zip({ *other }.counts_mut()) {
            *total = total.saturating_add(*addend);
        }
    }

    fn counts_mut(&mut self) -> [&mut u64; 10] {
        let Self {
            requests,
            input_tokens,
            output_tokens,
            cached_tokens,
            reasoning_tokens,
            total_tokens,
            audio,
        } = self;
        let AudioTotals { input_audio_tokens, output_audio_tokens, cached_audio_tokens, audio_millis } =
            audio;
        [
            requests,
            input_tokens,
            output_tokens,
            cached_tokens,
            reasoning_tokens,
            total_tokens,
            input_audio_tokens,
            output_audio_tokens,
            cached_audio_tokens,
            audio_millis,
        ]
    }

    /// The counts as they are shown, those of audio only if the report has any.
    pub(super) fn columns(mut self, has_audio: bool) -> impl Iterator<Item = String> {
        let seconds = (self.audio.audio_millis as f64 / 1000.0).to_string();
        let [counts @ .., _millis] = self.counts_mut().map(|count| count.to_string());
        let shown = if has_audio { counts.len() } else { 6 };
        counts.into_iter().take(shown).chain(has_audio.then_some(seconds))
    }
}

fn serialize_millis_as_seconds<S: Serializer>(millis: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*millis as f64 / 1000.0)
}
