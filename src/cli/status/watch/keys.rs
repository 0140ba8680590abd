//! What the keys of `status --watch` do.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::cli::status::backends::SortOrder;

/// The longest filter, in characters.
const MAX_FILTER_CHARACTERS: usize = 100;

/// What the operator has chosen.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) sort: SortOrder,
    /// Only backends are shown whose name, state or reason contains this.
    pub(super) filter: String,
    /// While a filter is typed: the one before, which comes back if this one is given up.
    previous_filter: Option<String>,
    pub(super) is_paused: bool,
    pub(super) shows_help: bool,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyEffect {
    /// To show the view as it is now.
    Redraw,
    Quit,
}

impl View {
    /// Whether a filter is typed.
    pub(super) fn is_typing(&self) -> bool {
        self.previous_filter.is_some()
    }

    /// Does what a key asks for.
    pub(super) fn on_key(&mut self, key: KeyEvent) -> KeyEffect {
        let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if has_control && key.code == KeyCode::Char('c') {
            return KeyEffect::Quit;
        }
        if self.is_typing() {
            self.on_key_of_filter(key.code, has_control);
            return KeyEffect::Redraw;
        }
        match key.code {
            KeyCode::Esc | KeyCode::Char('q') => return KeyEffect::Quit,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/' | 'f') => self.previous_filter = Some(self.filter.clone()),
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Char('?') => self.shows_help = !self.shows_help,
            _ => {}
        }
        KeyEffect::Redraw
    }

    fn on_key_of_filter(&mut self, code: KeyCode, has_control: bool) {
        match code {
            KeyCode::Enter => self.previous_filter = None,
            KeyCode::Esc => self.filter = self.previous_filter.take().unwrap_or_default(),
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char('h') if has_control => {
                self.filter.pop();
            }
            KeyCode::Char('u') if has_control => self.filter.clear(),
            KeyCode::Char(character)
                if !has_control
                    && !character.is_control()
                    && self.filter.chars().count() < MAX_FILTER_CHARACTERS =>
            {
                self.filter.push(character);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(view: &mut View, keys: &str) -> bool {
        keys.chars().any(|key| {
            let (code, modifiers) = match key {
                '\n' => (KeyCode::Enter, KeyModifiers::NONE),
                '\u{1b}' => (KeyCode::Esc, KeyModifiers::NONE),
                '\u{8}' => (KeyCode::Backspace, KeyModifiers::NONE),
                '\u{3}' => (KeyCode::Char('c'), KeyModifiers::CONTROL),
                '\u{15}' => (KeyCode::Char('u'), KeyModifiers::CONTROL),
                '\u{11}' => (KeyCode::Char('q'), KeyModifiers::CONTROL),
                key => (KeyCode::Char(key), KeyModifiers::NONE),
            };
            view.on_key(KeyEvent::new(code, modifiers)) == KeyEffect::Quit
        })
    }

    #[test]
    fn a_filter_is_typed_kept_given_up_and_changed() {
        for (keys, filter, is_typing) in [
            ("", "", false),
            ("/", "", true),
            ("/wes", "wes", true),
            ("fsqp?\n", "sqp?", false),
            ("/west\u{8}\u{8}\u{8}\u{8}\u{8}e\n", "e", false),
            ("/wes\n/t\n", "west", false),
            ("/wes\n/t\u{1b}", "wes", false),
            ("/wes\n/\u{15}\n", "", false),
            ("/a\u{11}b", "ab", true),
        ] {
            let mut view = View::default();
            assert!(!press(&mut view, keys), "{keys:?}");
            assert_eq!((view.filter.as_str(), view.is_typing()), (filter, is_typing), "{keys:?}");
            assert!(view.sort == SortOrder::WorstFirst && !view.is_paused && !view.shows_help);
        }
        let mut view = View::default();
        press(&mut view, &format!("/{}", "x".repeat(500)));
        assert_eq!(view.filter.len(), MAX_FILTER_CHARACTERS);
    }

    #[test]
    fn keys_quit_sort_pause_and_help() {
        for (keys, quits) in [
            ("q", true),
            ("\u{1b}", true),
            ("\u{3}", true),
            ("/\u{3}", true),
            ("/q\u{1b}", false),
            ("xyz1", false),
        ] {
            assert_eq!(press(&mut View::default(), keys), quits, "{keys:?}");
        }
        let mut view = View::default();
        let names: Vec<_> = (0..6)
            .map(|_| {
                press(&mut view, "s");
                view.sort.as_str()
            })
            .collect();
        assert_eq!(names, ["name", "attempts", "429s", "p95", "worst first", "name"]);
        press(&mut view, "p?");
        assert!(view.is_paused && view.shows_help);
        press(&mut view, "p?");
        assert!(!view.is_paused && !view.shows_help);
    }
}
