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
    /// Shown only if there are any.
    #[serde(skip)]
    pub(super) cache_write_tokens: u64,
    #[serde(skip)]
    pub(super) audio: AudioTotals,
}

/// Which columns a report has besides those of every report.
#[derive(Clone, Copy, Debug)]
pub(super) struct OptionalColumns {
    pub(super) has_cache_writes: bool,
    pub(super) has_audio: bool,
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

    fn counts_mut(&mut self) -> [&mut u64; 11] {
        let Self {
            requests,
            input_tokens,
            output_tokens,
            cached_tokens,
            reasoning_tokens,
            total_tokens,
            cache_write_tokens,
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
            cache_write_tokens,
            input_audio_tokens,
            output_audio_tokens,
            cached_audio_tokens,
            audio_millis,
        ]
    }

    /// The counts as they are shown in these columns.
    pub(super) fn columns(mut self, shown: OptionalColumns) -> impl Iterator<Item = String> {
        let OptionalColumns { has_cache_writes, has_audio } = shown;
        let seconds = (self.audio.audio_millis as f64 / 1000.0).to_string();
        let [always @ .., cache_writes, input_audio, output_audio, cached_audio, _millis] =
            self.counts_mut().map(|count| count.to_string());
        let audio = [input_audio, output_audio, cached_audio, seconds];
        let audio = has_audio.then_some(audio).into_iter().flatten();
        always.into_iter().chain(has_cache_writes.then_some(cache_writes)).chain(audio)
    }
}

fn serialize_millis_as_seconds<S: Serializer>(millis: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*millis as f64 / 1000.0)
}
