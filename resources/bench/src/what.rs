//! What can be measured; each in a start of the lab of its own.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::io::Set;

/// One start of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Boots.
    Boot,
    /// Containers.
    Containers,
    /// Input and output.
    Io(Set),
}

impl What {
    /// Everything, in the order in which it is measured and shown.
    pub const ALL: [Self; 6] = [
        Self::Boot,
        Self::Containers,
        Self::Io(Set::Block),
        Self::Io(Set::Net),
        Self::Io(Set::Vsock),
        Self::Io(Set::Fs),
    ];

    /// Stable name, as in the JSON and on the command line.
    pub fn id(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Containers => "containers",
            Self::Io(set) => set.id(),
        }
    }
}

impl ValueEnum for What {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.id()))
    }
}
