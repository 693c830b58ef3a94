//! What keeps an operator from doing more than was meant: a trial that changes nothing, and a question before what cannot be
//! undone. On a terminal the name of what is at stake is typed; a script gives `--yes`, and the name as an argument.
//! That it is written down who did what is `audit`; what a command does is not known here.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result};
use clap::Args;
use tidelog_events::ids::UserId;

/// What every command of an operator takes that changes something.
#[derive(Args, Clone, Debug)]
pub(crate) struct OperatorArgs {
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Who is noted as having done it [default: the system's user]
    #[arg(long = "as", value_name = "USER", value_parser = |text: &str| UserId::parse(text))]
    by: Option<UserId>,
}

impl OperatorArgs {
    /// Who does it: what was said, or else the system's user.
    pub(crate) fn who(&self) -> String {
        match &self.by {
            Some(user) => user.as_str().to_owned(),
            None => system_user(),
        }
    }

    /// Who does it, where that was said.
    pub(crate) fn said(&self) -> Option<&UserId> {
        self.by.as_ref()
    }
}

/// What a command takes that destroys something.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ConfirmArgs {
    /// Go on without being asked; what it is about has to be named by the command's arguments
    #[arg(long)]
    yes: bool,
}

/// What cannot be undone.
#[derive(Debug)]
pub(crate) struct Danger<'a> {
    /// What is about to be done, as the beginning of a sentence: `Dropping 3 letters`.
    pub(crate) what: &'a str,
    /// The name that has to be typed, exactly.
    pub(crate) name: &'a str,
    /// Whether the command's arguments name it, so that `--yes` is enough.
    pub(crate) named: bool,
    /// What a script gives, in the words of the command line: `--yes and --topic NAME`.
    pub(crate) flags: &'a str,
}

/// It was not confirmed, so nothing was done. Ends the process with the exit code of a wrong command line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// There is nobody to ask.
    #[error("{what} cannot be undone, and there is no terminal to ask on: give {flags}. Nothing was done")]
    NobodyToAsk {
        /// What would have been done.
        what: String,
        /// What to give.
        flags: String,
    },
    /// `--yes` to something that is not named.
    #[error("{what} cannot be undone, and --yes is not enough for it: give {flags}. Nothing was done")]
    NotNamed {
        /// What would have been done.
        what: String,
        /// What to give.
        flags: String,
    },
    /// It would be about everything.
    #[error("{0}. Nothing was done")]
    Unnamed(String),
    /// Something else was typed.
    #[error("that is not {0:?}: nothing was done")]
    OtherName(String),
}

impl ConfirmArgs {
    /// Asks, or takes `--yes` for something that is named.
    pub(crate) fn confirm(self, danger: &Danger<'_>) -> Result<()> {
        let (what, flags) = (danger.what.to_owned(), danger.flags.to_owned());
        if self.yes && danger.named {
            return Ok(());
        }
        if self.yes {
            return Err(Refused::NotNamed { what, flags }.into());
        }
        let mut typed = std::io::stdin().lock();
        let mut shown = std::io::stderr();
        if !(std::io::stdin().is_terminal() && shown.is_terminal()) {
            return Err(Refused::NobodyToAsk { what, flags }.into());
        }
        ask(danger, &mut typed, &mut shown)
    }
}

fn ask(danger: &Danger<'_>, typed: &mut impl BufRead, shown: &mut impl Write) -> Result<()> {
    write!(
        shown,
        "{} cannot be undone.\nType {} to go on: ",
        danger.what, danger.name
    )
    .and_then(|()| shown.flush())
    .context("cannot ask")?;
    let mut line = String::new();
    typed.read_line(&mut line).context("cannot read the answer")?;
    match line.trim() == danger.name {
        true => Ok(()),
        false => Err(Refused::OtherName(danger.name.to_owned()).into()),
    }
}

/// The system's name of whoever runs this; the number where it has none.
fn system_user() -> String {
    // Asked of the system's own tool, which knows of users that are in no file.
    let named = std::process::Command::new("id").arg("-un").output();
    let name = named
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty());
    name.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DANGER: Danger<'static> = Danger {
        what: "Emptying the topic a",
        name: "sync.a.v1",
        named: true,
        flags: "--yes and --topic NAME",
    };

    fn asked(answer: &str) -> (Result<()>, String) {
        let mut shown = Vec::new();
        let ended = ask(&DANGER, &mut answer.as_bytes(), &mut shown);
        (ended, String::from_utf8(shown).expect("text"))
    }

    #[test]
    fn only_the_exact_name_goes_on() {
        let (ended, shown) = asked("sync.a.v1\n");
        assert!(ended.is_ok());
        assert_eq!(
            shown,
            "Emptying the topic a cannot be undone.\nType sync.a.v1 to go on: "
        );
        for other in ["", "\n", "yes\n", "sync.a.v\n", "SYNC.A.V1\n", "sync.a.v1 x\n"] {
            let error = asked(other).0.expect_err(other);
            assert!(error.is::<Refused>(), "{error}");
        }
    }

    #[test]
    fn yes_is_enough_only_for_what_is_named() {
        let yes = ConfirmArgs { yes: true };
        assert!(yes.confirm(&DANGER).is_ok());
        let unnamed = Danger {
            named: false,
            ..DANGER
        };
        let error = yes.confirm(&unnamed).expect_err("no name").to_string();
        assert!(error.contains("--yes and --topic NAME"), "{error}");
    }
}
