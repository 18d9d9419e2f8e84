//! What is asked of whoever types.

use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::LocalModes;

use super::container::Changed;

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
    let hidden = Changed::by(|terminal| terminal.local_modes.remove(LocalModes::ECHO));
    let answer = line(prompt);
    if hidden.is_changed() {
        println!();
    }
    answer
}
