//! What is asked of whoever types.

use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// Whether what is said is to be done; without an answer it is not.
pub(super) fn confirmed(what: &str) -> io::Result<bool> {
    let answer = line(&format!("This will remove {what}. Continue? [y/N] "))?;
    if !io::stdin().is_terminal() {
        writeln!(io::stdout())?;
    }
    Ok(matches!(answer.as_str(), "y" | "Y" | "yes"))
}

/// A line that is asked for.
pub(super) fn line(prompt: &str) -> io::Result<String> {
    let mut out = io::stdout().lock();
    out.write_all(prompt.as_bytes())?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim_end_matches(['\n', '\r']).to_owned())
}

/// A line that the terminal does not show.
pub(super) fn secret(prompt: &str) -> io::Result<String> {
    let hidden = Hidden::new();
    let answer = line(prompt);
    if hidden.0.is_some() {
        println!();
    }
    answer
}

/// The terminal of standard input, if it is one, shows nothing of what is typed until this is dropped.
struct Hidden(Option<Termios>);

impl Hidden {
    fn new() -> Self {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        match tcsetattr(&stdin, OptionalActions::Now, &hidden) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
