//! A terminal that is drawn upon again and again, and that is afterwards as it was before, however the drawing ends. Knows
//! nothing of what is drawn.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// How soon a key or a new size is noticed.
const LOOK_UP: Duration = Duration::from_millis(50);
/// The other screen, no cursor, no wrapping of what is too long; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The terminal while it is ours.
pub(super) struct Screen {
    /// How its keyboard was; none where there is no keyboard.
    keyboard: Option<Termios>,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// The time is over.
    Time,
    /// The terminal has another size.
    Resized,
    /// `q` was pressed.
    Quit,
}

impl Screen {
    /// Takes the terminal over; none where stdout is none.
    pub(super) fn enter() -> Option<Screen> {
        if !io::stdout().is_terminal() {
            return None;
        }
        let stdin = io::stdin();
        let keyboard = stdin.is_terminal().then(|| tcgetattr(&stdin).ok()).flatten();
        if let Some(before) = &keyboard {
            // Keys come one by one and unseen; Ctrl-C stays a signal.
            let mut raw = before.clone();
            raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            raw.special_codes[SpecialCodeIndex::VMIN] = 0;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
            // Without it, `q` has to be followed by Enter, and all else goes on.
            let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
        }
        let screen = Screen { keyboard };
        screen.say(ENTER);
        Some(screen)
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => (80, 24),
        }
    }

    /// Draws lines over what was drawn before, each cut to the width.
    pub(super) fn draw(&self, lines: &[String]) {
        let (columns, _) = self.size();
        let mut text = String::from("\x1b[H");
        for (n, line) in lines.iter().enumerate() {
            let cut: String = line.chars().take(columns).collect();
            let end = if n + 1 < lines.len() { "\r\n" } else { "" };
            text.push_str(&format!("{cut}\x1b[K{end}"));
        }
        text.push_str("\x1b[J");
        self.say(&text);
    }

    /// Waits for so long, for `q`, or for another size of the terminal.
    pub(super) async fn wait(&self, time: Duration) -> Woken {
        let (until, size) = (tokio::time::Instant::now() + time, self.size());
        loop {
            if self.quits() {
                return Woken::Quit;
            }
            if self.size() != size {
                return Woken::Resized;
            }
            let now = tokio::time::Instant::now();
            if now >= until {
                return Woken::Time;
            }
            tokio::time::sleep(LOOK_UP.min(until - now)).await;
        }
    }

    /// Whether `q` was pressed.
    fn quits(&self) -> bool {
        let stdin = io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        if self.keyboard.is_none() || !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..)) {
            return false;
        }
        let mut keys = [0; 64];
        let read = rustix::io::read(&stdin, &mut keys).unwrap_or(0);
        keys[..read].iter().any(|key| matches!(key, b'q' | b'Q'))
    }

    fn say(&self, text: &str) {
        let mut out = io::stdout().lock();
        // A terminal that is gone takes the process with it, by a signal.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.say(LEAVE);
        if let Some(before) = &self.keyboard {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
