//! `aoai-lb status --watch` on a terminal: the whole screen, updated in place, with keys.

mod frame;
mod keys;
mod screen;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyEventKind};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use self::frame::Known;
use self::keys::{KeyEffect, View};
use self::screen::Screen;
pub(super) use self::screen::is_available;
use super::status_client::{StatusClient, StatusError};
use crate::admin::status::StatusReport;
use crate::cli::cli_error::CliError;
use crate::cli::exit_code::EXIT_SUCCESS;
use crate::cli::output::palette;
use crate::cli::text::Palette;

/// Keys and new sizes that wait to be handled. Beyond that, the thread that reads them waits.
const MAX_WAITING_EVENTS: usize = 64;
/// How often the status is asked for.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// An exit code of a process that a signal ended is the number of the signal and this.
const EXIT_SIGNAL: u8 = 128;

/// A request for the status.
type Request = JoinHandle<Result<StatusReport, StatusError>>;

/// Shows the status until a key or a signal ends it, and returns the exit code. Problems of the admin API are shown, and
/// the request is repeated.
///
/// # Errors
/// If the terminal cannot be used any more.
pub(super) async fn run(client: StatusClient, is_verbose: bool) -> Result<u8, StatusError> {
    let client = Arc::new(client);
    // Before the terminal is changed, so that no signal leaves it so.
    let mut signals = EndSignals::new()?;
    let mut screen = Screen::open()?;
    let mut events = read_events();
    let mut ticks = interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let palette = match palette() {
        Palette::Text => Palette::Attributes,
        palette => palette,
    };
    let mut watched = Watched { is_verbose, ..Watched::default() };
    let mut view = View::default();
    let mut request: Option<Request> = None;
    loop {
        let size = screen.size();
        screen.show(frame::lines(&watched.known(Instant::now()), &view, size), size, palette)?;
        tokio::select! {
            event = events.recv() => match event {
                Some(Ok(Event::Key(key))) if view.on_key(key) == KeyEffect::Quit => return Ok(EXIT_SUCCESS),
                // Terminals differ in what they show after that.
                Some(Ok(Event::Resize(..))) => screen.forget(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            },
            number = signals.next() => return Ok(EXIT_SIGNAL.saturating_add(number)),
            result = finish(&mut request) => if !view.is_paused {
                watched.update(result, Instant::now());
            },
            _ = ticks.tick() => if request.is_none() && !view.is_paused {
                let client = Arc::clone(&client);
                request = Some(tokio::spawn(async move { Ok(client.get().await?.1) }));
            },
        }
    }
}

/// What the last requests told.
#[derive(Default)]
struct Watched {
    /// The last status, and when it came.
    status: Option<(StatusReport, Instant)>,
    /// Why the last request failed.
    error: Option<String>,
    is_verbose: bool,
}

impl Watched {
    fn update(&mut self, result: Result<StatusReport, StatusError>, now: Instant) {
        match result {
            Ok(status) => (self.status, self.error) = (Some((status, now)), None),
            // What was known stays in sight.
            Err(error) => self.error = Some(CliError::from(error).to_string()),
        }
    }

    fn known(&self, now: Instant) -> Known<'_> {
        let status = self.status.as_ref();
        Known {
            status: status.map(|(status, at)| (status, now.saturating_duration_since(*at))),
            error: self.error.as_deref(),
            is_verbose: self.is_verbose,
        }
    }
}

/// Waits for the request, if there is one. It stays if this is dropped.
async fn finish(request: &mut Option<Request>) -> Result<StatusReport, StatusError> {
    let Some(running) = request else { return std::future::pending().await };
    let result = running.await;
    *request = None;
    result.unwrap_or_else(|error| Err(io::Error::other(error).into()))
}

/// Reads keys and new sizes on a thread of its own: the library waits for the rest of a sequence that is not complete,
/// and forever once the terminal is gone. The thread ends with the process.
fn read_events() -> Receiver<io::Result<Event>> {
    let (sender, receiver) = mpsc::channel(MAX_WAITING_EVENTS);
    thread::spawn(move || {
        loop {
            let event = event::read();
            if matches!(&event, Ok(Event::Key(key)) if key.kind == KeyEventKind::Release) {
                continue;
            }
            let is_over = event.is_err();
            if sender.blocking_send(event).is_err() || is_over {
                return;
            }
        }
    });
    receiver
}

/// The signals that end the process. Their default would leave the terminal as it is.
struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl EndSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The number of the next one.
    async fn next(&mut self) -> u8 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.quit.recv() => SignalKind::quit(),
        };
        u8::try_from(kind.as_raw_value()).unwrap_or_default()
    }
}
