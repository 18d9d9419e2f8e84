//! The kernel command line.

/// A kernel command line with a bound.
#[derive(Clone, Debug)]
pub struct CommandLine {}

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error)]
pub enum CommandLineError {}

impl CommandLine {
    /// Takes what the user asked for. `max` is the bound in bytes ([`crate::Kernel::command_line_max`]).
    ///
    /// # Errors
    /// If it is longer than `max` or has characters that no command line may have.
    pub fn new(_text: &str, _max: usize) -> Result<Self, CommandLineError> {
        unimplemented!()
    }
    /// Appends parameters for the kernel, before the arguments for init (those after ` -- `).
    ///
    /// # Errors
    /// As [`Self::new`]; the command line is then as it was.
    pub fn append(&mut self, _parameters: &str) -> Result<(), CommandLineError> {
        unimplemented!()
    }
    /// Whether a kernel parameter of that name is given (`name` or `name=value`).
    #[must_use]
    pub fn has(&self, _name: &str) -> bool {
        unimplemented!()
    }
}
