//! Kernel formats and boot protocols: guest memory in, entry state out. Knows no KVM.
