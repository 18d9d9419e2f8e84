//! Any text as a configuration, an option string and a CPU template. What is read is written so
//! that it reads as the same.

#![no_main]

use cofferdam::arch::template::CpuTemplate;
use cofferdam::config::{
    BalloonConfig, ByteSize, ConsoleConfig, DiskConfig, FsConfig, MemoryConfig, MemorySize,
    NetConfig, PmemConfig, RngConfig, RootConfig, VmConfig, VsockConfig, parse_options,
};
use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_msr_entry};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = serde_json::from_str::<VmConfig>(text) {
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<VmConfig>(&again).unwrap(), config);
        let _ = config.validate();
    }
    if let Ok(template) = serde_json::from_str::<CpuTemplate>(text) {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[leaf(0), leaf(1), leaf(7)]).unwrap();
        let _ = template.apply_cpuid(&mut cpuid);
        let msr = |index| kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msrs: Vec<_> = template.msrs().map(msr).collect();
        template.apply_msrs(&mut msrs);
    }
    for first in [None, Some("path")] {
        let _ = parse_options::<BalloonConfig>(text, first);
        let _ = parse_options::<DiskConfig>(text, first);
        let _ = parse_options::<FsConfig>(text, first);
        let _ = parse_options::<MemoryConfig>(text, first);
        let _ = parse_options::<PmemConfig>(text, first);
        let _ = parse_options::<RngConfig>(text, first);
        let _ = parse_options::<RootConfig>(text, first);
        let _ = parse_options::<VsockConfig>(text, first);
        if let Ok(net) = parse_options::<NetConfig>(text, first) {
            let _ = net.mac_address();
        }
    }
    if let Ok(console) = text.parse::<ConsoleConfig>() {
        assert_eq!(console.to_string().parse(), Ok(console));
    }
    if let Ok(size) = text.parse::<MemorySize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    let _ = text.parse::<ByteSize>();
});
