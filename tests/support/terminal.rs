//! A pseudo terminal with a program in it, and what its screen shows.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::{send_signal_to, wait_until};

/// A program in a terminal of its own. It is killed when this is dropped.
pub struct Terminal {
    child: Child,
    master: File,
    reader: Option<JoinHandle<()>>,
    is_closed: Arc<AtomicBool>,
    /// Kept open, so that the settings can be read when the program has exited.
    device: Option<OwnedFd>,
    screen: Arc<Mutex<vt100::Parser>>,
    settings_before: String,
}

fn settings(device: &OwnedFd) -> String {
    let Termios { input_modes, output_modes, control_modes, local_modes, .. } = tcgetattr(device).unwrap();
    format!("{input_modes:?} {output_modes:?} {control_modes:?} {local_modes:?}")
}

fn at_least_one(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).unwrap()
}

impl Terminal {
    /// Runs the binary with these arguments and environment variables.
    pub fn start(arguments: &[&str], variables: &[(&str, &str)], columns: u16, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let device = ioctl_tiocgptpeer(&master, flags).unwrap();
        tcsetwinsize(&master, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        // It becomes the controlling terminal of the program, so that the kernel tells it of a new size.
        let mut command = Command::new("setsid");
        command.args(["--ctty", env!("CARGO_BIN_EXE_aoai-lb")]).args(arguments);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(variables.iter().copied());
        let stream = || Stdio::from(device.try_clone().unwrap());
        let settings_before = settings(&device);
        let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        let screen = vt100::Parser::new(at_least_one(rows), at_least_one(columns), 0);
        let (master, screen) = (File::from(master), Arc::new(Mutex::new(screen)));
        let is_closed = Arc::new(AtomicBool::new(false));
        let reader = read_output(master.try_clone().unwrap(), Arc::clone(&screen), Arc::clone(&is_closed));
        Self { child, master, reader: Some(reader), is_closed, device: Some(device), screen, settings_before }
    }

    pub fn type_text(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        self.screen.lock().unwrap().screen_mut().set_size(at_least_one(rows), at_least_one(columns));
        tcsetwinsize(&self.master, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 })
            .unwrap();
    }

    /// The rows that are on the screen, without blanks at their ends.
    pub fn rows(&self) -> Vec<String> {
        let parser = self.screen.lock().unwrap();
        let columns = parser.screen().size().1.get();
        parser.screen().rows(0, columns).map(|row| row.trim_end().to_owned()).collect()
    }

    /// Whether the program uses the whole screen.
    pub fn is_full_screen(&self) -> bool {
        let parser = self.screen.lock().unwrap();
        parser.screen().alternate_screen()
    }

    /// Whether a cell has a color.
    pub fn is_colored(&self) -> bool {
        let parser = self.screen.lock().unwrap();
        let (rows, columns) = parser.screen().size();
        let mut cells = (0..rows.get()).flat_map(|row| (0..columns.get()).map(move |column| (row, column)));
        cells.any(|(row, column)| {
            let cell = parser.screen().cell(row, column).unwrap();
            cell.fgcolor() != vt100::Color::Default
        })
    }

    /// Waits until the rows meet a condition, and returns them.
    pub async fn wait_for(&self, what: &str, condition: impl Fn(&[String]) -> bool) -> Vec<String> {
        super::poll(what, async || {
            let rows = self.rows();
            if condition(&rows) { Ok(rows) } else { Err(rows) }
        })
        .await
    }

    pub fn send_signal(&self, name: &str) {
        assert!(send_signal_to(name, self.child.id()));
    }

    /// Waits until the program exits, and returns its exit code.
    pub async fn wait_for_exit(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the program exits", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }

    /// Waits until the terminal is as it was before the program.
    pub async fn wait_until_restored(&self) {
        let is_restored = || {
            let parser = self.screen.lock().unwrap();
            !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
        };
        wait_until("the screen is restored", is_restored).await;
        assert_eq!(settings(self.device.as_ref().unwrap()), self.settings_before);
    }

    /// Closes the terminal, as a window that is closed or a connection that is lost, and returns the exit code of the
    /// program.
    pub async fn close(mut self) -> Option<i32> {
        self.is_closed.store(true, Ordering::Release);
        self.reader.take().unwrap().join().unwrap();
        self.device = None;
        self.master = File::open("/dev/null").unwrap();
        self.wait_for_exit().await
    }
}

/// Shows what the program writes, on a thread.
fn read_output(
    mut output: File,
    screen: Arc<Mutex<vt100::Parser>>,
    is_closed: Arc<AtomicBool>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        while !is_closed.load(Ordering::Acquire) {
            if poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&timeout)).unwrap() == 0 {
                continue;
            }
            let Ok(length @ 1..) = output.read(&mut buffer) else { return };
            screen.lock().unwrap().process(&buffer[..length]);
        }
    })
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.is_closed.store(true, Ordering::Release);
    }
}
