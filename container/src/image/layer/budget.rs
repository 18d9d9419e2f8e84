//! How much memory an archive may take.
//!
//! What an archive says of its files (names, link targets, attributes) is kept until its end, and a few
//! compressed bytes can say a lot. So each archive has an allowance, and earns more by what its files
//! hold: real images have many files only because much is in them.

/// What each archive may take, in bytes.
const ALLOWANCE: u64 = 24 << 20;
/// So many bytes of content earn one more.
const PRICE: u64 = 4;
/// No archive takes more.
const MOST: u64 = 512 << 20;

/// More was said than is kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "the names, links and attributes of the files take more than {} MiB of memory, which is too much for \
     so little content",
    limit >> 20
)]
pub struct TooMuch {
    limit: u64,
}

/// What an archive has taken and earned.
#[derive(Debug, Default)]
pub struct Budget {
    kept: u64,
    content: u64,
}

impl Budget {
    /// So many bytes are about to be kept until the archive's end.
    pub fn keep(&mut self, bytes: usize) -> Result<(), TooMuch> {
        self.kept = self.kept.saturating_add(bytes as u64);
        let limit = (ALLOWANCE + self.content / PRICE).min(MOST);
        match self.kept <= limit {
            true => Ok(()),
            false => Err(TooMuch { limit }),
        }
    }

    /// So many bytes of content have come.
    pub fn earn(&mut self, bytes: u64) {
        self.content = self.content.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a hostile archive takes all memory, or a large honest one is refused.
    #[test]
    fn content_earns_memory_up_to_a_limit() {
        let mut budget = Budget::default();
        budget.keep(24 << 20).unwrap();
        let error = budget.keep(1).unwrap_err().to_string();
        assert!(error.contains("more than 24 MiB"), "{error}");
        budget.earn(4 << 20);
        budget.keep((1 << 20) - 1).unwrap();
        budget.earn(u64::MAX);
        budget.keep(487 << 20).unwrap();
        assert!(budget.keep(1).is_err());
        assert!(budget.keep(usize::MAX).is_err());
    }
}
