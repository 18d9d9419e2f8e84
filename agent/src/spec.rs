//! What the agent reads of the OCI runtime specification (version 1.2): its own few structures, since
//! this program is in the memory of every container. What is read and cannot be done is refused by
//! whoever would do it; what is the host's part is not here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `config.json`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub process: Option<Process>,
    pub root: Root,
    pub hostname: String,
    pub domainname: String,
    pub mounts: Vec<Mount>,
    pub linux: Linux,
}

impl Spec {
    /// Whether the container has users of its own.
    pub fn has_user_namespace(&self) -> bool {
        self.has_namespace("user")
    }

    /// Whether it has a namespace of that kind.
    pub fn has_namespace(&self, kind: &str) -> bool {
        let mut namespaces = self.linux.namespaces.iter().flatten();
        namespaces.any(|one| one.kind == kind)
    }
}

/// `root`, without its path.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Root {
    pub readonly: bool,
}

/// `mounts[]`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub source: Option<String>,
    pub options: Option<Vec<String>>,
    pub uid_mappings: Option<Vec<IdMapping>>,
    pub gid_mappings: Option<Vec<IdMapping>>,
}

/// `process`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    pub terminal: bool,
    pub console_size: Option<ConsoleSize>,
    pub user: User,
    pub args: Option<Vec<String>>,
    pub env: Option<Vec<String>>,
    pub cwd: String,
    pub capabilities: Option<Capabilities>,
    pub rlimits: Option<Vec<Rlimit>>,
    pub no_new_privileges: bool,
    pub oom_score_adj: Option<i32>,
    pub apparmor_profile: Option<String>,
    pub selinux_label: Option<String>,
    pub io_priority: Option<IoPriority>,
    pub scheduler: Option<Scheduler>,
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<CpuAffinity>,
}

/// `process.execCPUAffinity`: lists of the guest's CPUs, as `0-2,7`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct CpuAffinity {
    pub initial: Option<String>,
    pub r#final: Option<String>,
}

/// `process.consoleSize`.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ConsoleSize {
    pub height: u16,
    pub width: u16,
}

/// `process.user`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub umask: Option<u32>,
    pub additional_gids: Option<Vec<u32>>,
    /// `USER[:GROUP]` by name, which wins: only who has the container's files knows whose that is.
    pub username: Option<String>,
}

/// `process.capabilities`; a set that is not there is empty.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Capabilities {
    pub bounding: Option<Vec<String>>,
    pub effective: Option<Vec<String>>,
    pub inheritable: Option<Vec<String>>,
    pub permitted: Option<Vec<String>>,
    pub ambient: Option<Vec<String>>,
}

/// `process.rlimits[]`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

/// `process.ioPriority`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct IoPriority {
    pub class: String,
    #[serde(default)]
    pub priority: i64,
}

/// `process.scheduler`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Scheduler {
    pub policy: String,
    pub nice: i32,
    pub priority: i32,
    pub flags: Option<Vec<String>>,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// `linux`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    pub namespaces: Option<Vec<Namespace>>,
    pub uid_mappings: Option<Vec<IdMapping>>,
    pub gid_mappings: Option<Vec<IdMapping>>,
    pub sysctl: Option<BTreeMap<String, String>>,
    pub devices: Option<Vec<Device>>,
    pub resources: Option<Resources>,
    pub rootfs_propagation: Option<String>,
    pub seccomp: Option<Seccomp>,
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,
    pub mount_label: Option<String>,
    pub personality: Option<Personality>,
    pub time_offsets: Option<BTreeMap<String, TimeOffset>>,
}

/// `linux.timeOffsets.monotonic` and `.boottime`.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct TimeOffset {
    pub secs: i64,
    pub nanosecs: u32,
}

/// `linux.namespaces[]`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: Option<String>,
}

/// `linux.uidMappings[]` and its like.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub container_id: u32,
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

/// `linux.devices[]`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// `linux.personality`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Personality {
    pub domain: String,
    pub flags: Option<Vec<String>>,
}

/// `linux.resources`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    pub devices: Option<Vec<DeviceRule>>,
    pub memory: Option<Memory>,
    pub cpu: Option<Cpu>,
    pub pids: Option<Pids>,
    #[serde(rename = "blockIO")]
    pub block_io: Option<BlockIo>,
    pub hugepage_limits: Option<Vec<HugepageLimit>>,
    pub unified: Option<BTreeMap<String, String>>,
}

/// `linux.resources.devices[]`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct DeviceRule {
    pub allow: bool,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub access: Option<String>,
}

/// `linux.resources.memory`; -1 is no limit.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    pub swap: Option<i64>,
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
}

/// `linux.resources.cpu`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub period: Option<u64>,
    pub burst: Option<u64>,
    pub cpus: Option<String>,
    pub mems: Option<String>,
    pub idle: Option<i64>,
}

/// `linux.resources.pids`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Pids {
    pub limit: i64,
}

/// `linux.resources.blockIO`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    pub weight: Option<u16>,
    pub throttle_read_bps_device: Option<Vec<Throttle>>,
    pub throttle_write_bps_device: Option<Vec<Throttle>>,
    #[serde(rename = "throttleReadIOPSDevice")]
    pub throttle_read_iops_device: Option<Vec<Throttle>>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub throttle_write_iops_device: Option<Vec<Throttle>>,
}

/// `linux.resources.blockIO.throttleReadBpsDevice[]` and its like.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
pub struct Throttle {
    pub major: i64,
    pub minor: i64,
    pub rate: u64,
}

/// `linux.resources.hugepageLimits[]`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    pub page_size: String,
    pub limit: u64,
}

/// `linux.seccomp`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seccomp {
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    pub architectures: Option<Vec<String>>,
    pub flags: Option<Vec<String>>,
    pub syscalls: Option<Vec<SeccompSyscall>>,
}

/// `linux.seccomp.syscalls[]`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SeccompSyscall {
    pub names: Vec<String>,
    pub action: String,
    pub errno_ret: Option<u32>,
    pub args: Option<Vec<SeccompArg>>,
}

/// `linux.seccomp.syscalls[].args[]`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SeccompArg {
    pub index: u8,
    pub value: u64,
    pub value_two: u64,
    pub op: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a configuration as engines write it is not understood, or loses a part.
    #[test]
    fn configurations_are_read() {
        let text = r#"{"ociVersion":"1.0.2","process":{"terminal":true,"user":{"uid":5,"gid":6,
            "additionalGids":[7]},"args":["sh"],"env":["A=b"],"cwd":"/","capabilities":
            {"bounding":["CAP_KILL"]},"rlimits":[{"type":"RLIMIT_NOFILE","hard":2,"soft":1}],
            "noNewPrivileges":true},"root":{"path":"rootfs","readonly":true},"mounts":[{"destination":
            "/proc","type":"proc","source":"proc"}],"hooks":{},"linux":{"resources":{"memory":
            {"limit":-1,"disableOOMKiller":false},"blockIO":{"throttleReadIOPSDevice":
            [{"major":8,"minor":0,"rate":5}]}},"namespaces":[{"type":"pid"}],"uidMappings":null,
            "seccomp":{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":
            "SCMP_ACT_ALLOW","args":[{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}]}]}}}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        let process = spec.process.unwrap();
        assert_eq!(process.user.additional_gids, Some(vec![7]));
        assert!(process.no_new_privileges && process.terminal && spec.root.readonly);
        let resources = spec.linux.resources.unwrap();
        let block = resources.block_io.unwrap();
        assert_eq!(block.throttle_read_iops_device.unwrap()[0].rate, 5);
        let arg = &spec.linux.seccomp.unwrap().syscalls.unwrap()[0]
            .args
            .clone()
            .unwrap()[0];
        assert_eq!((arg.index, arg.value_two), (1, 3));
        assert_eq!(spec.mounts[0].kind.as_deref(), Some("proc"));
    }
}
