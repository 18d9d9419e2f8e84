//! Privileged containers: what of their own kernel they have, which others have not.

use crate::container::Engine;
use crate::harness::host;

/// If it fails, a privileged container lacks devices of its kernel's (so that it mounts no image, makes no
/// tunnel, reads no kernel log), or every container has them.
#[test]
fn a_privileged_container_has_the_devices_of_its_kernel() {
    let engine = Engine::new("privileged");
    let line = "run --rm --network none --pull never";
    let said = engine.script(
        &format!("{line} --privileged busybox"),
        "set -e
         for node in fuse kmsg loop-control loop0 loop63 net/tun vda pmem0 hwrng ttyS0; do
             [ -c /dev/$node ] || [ -b /dev/$node ] || echo no $node
         done
         [ $(readlink /dev/ptmx) = pts/ptmx ]
         truncate -s 4M /one /two; mke2fs -F /one >/dev/null; mke2fs -F /two >/dev/null
         mkdir -p /mnt/one /mnt/two; mount -o loop /one /mnt/one; mount -o loop /two /mnt/two
         echo kept >/mnt/two/file; umount /mnt/two; mount -o loop,ro /two /mnt/two; cat /mnt/two/file
         tunctl -t own0 >/dev/null; ip link set own0 up; [ -d /sys/class/net/own0 ]
         exec 3<>/dev/fuse; head -c 16 /dev/vda | wc -c; head -n 1 /dev/kmsg | grep -c Linux",
    );
    assert_eq!(said, "kept\n16\n1");
    let said = engine.script(
        &format!("{line} busybox"),
        "ls /dev; for node in fuse kmsg loop-control loop0 net vda pmem0; do
             [ ! -e /dev/$node ] || echo has $node
         done",
    );
    assert!(said.contains("null") && !said.contains("has "), "{said}");
    let said = engine.script(
        &format!(
            "{line} --cap-add SYS_ADMIN --device /dev/kmsg --device /dev/loop-control busybox"
        ),
        "ls /dev/kmsg /dev/loop-control; ls /dev | grep -c loop",
    );
    assert_eq!(said, "/dev/kmsg\n/dev/loop-control\n1");
}

/// What `iptables` of the host's, run in a container, is told to add: a line each.
const RULES: &str = "
    filter FORWARD -p tcp -m multiport --dports 80,443 -m comment --comment two -j ACCEPT
    filter FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    filter FORWARD -m limit --limit 5/min -j LOG --log-prefix seen:
    filter FORWARD -m physdev --physdev-is-bridged -j ACCEPT
    filter FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
    filter FORWARD -m hashlimit --hashlimit-above 9/s --hashlimit-name h -j DROP
    filter FORWARD -m connlimit --connlimit-above 9 -j REJECT
    filter FORWARD -m iprange --src-range RANGE -j ACCEPT
    filter FORWARD -m string --algo bm --string no -j DROP
    filter FORWARD -m length --length 1:9 -m pkttype --pkt-type unicast -j NFLOG --nflog-group 100
    filter OUTPUT -m owner --uid-owner 1337 -j RETURN
    filter INPUT -m state --state NEW -m recent --name r --set -j ACCEPT
    filter INPUT -m mac --mac-source 02:00:00:00:00:01 -j NFQUEUE --queue-num 3
    filter INPUT -p tcp -j REJECT --reject-with tcp-reset
    nat PREROUTING -m addrtype --dst-type LOCAL -j RETURN
    nat PREROUTING -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination ADDRESS
    nat PREROUTING -p tcp -m statistic --mode nth --every 3 --packet 0 -j REDIRECT --to-ports 15001
    nat POSTROUTING -j MASQUERADE --random-fully
    nat POSTROUTING -s SUBNET -j SNAT --to-source ADDRESS
    nat POSTROUTING -s SUBNET -j NETMAP --to SUBNET
    mangle FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
    mangle PREROUTING -p tcp -m socket --transparent -j MARK --set-xmark 0x539
    mangle PREROUTING -p tcp -j TPROXY --on-port 15006 --tproxy-mark 0x539
    mangle PREROUTING -m connmark --mark 0x539 -j CONNMARK --restore-mark
    mangle OUTPUT -m dscp --dscp 1 -j DSCP --set-dscp 2
    mangle POSTROUTING -p udp -j CHECKSUM --checksum-fill
    raw PREROUTING -m rpfilter --invert -j DROP
    raw PREROUTING -p udp -j CT --zone 1
    raw OUTPUT -p udp -j CT --notrack
";

/// If it fails, kind, k3s, istio or Docker in a container cannot make the rules that they are made of: by one of
/// the two kinds of `iptables`, for one of the two kinds of addresses.
#[test]
fn rules_of_clusters_can_be_made() {
    let engine = Engine::new("rules");
    let rules = engine.path("rules");
    std::fs::write(&rules, RULES.trim()).unwrap();
    // The host's programs, by its own loader: the image has neither.
    let script = "
        [ -n \"$(ls /host/usr/sbin/xtables-nft-multi)\" ] || exit 1
        ln -s /host/usr/lib/x86_64-linux-gnu /usr/lib/x86_64-linux-gnu 2>/dev/null
        mkdir -p /run
        export LD_LIBRARY_PATH=/host/usr/lib/x86_64-linux-gnu
        export XTABLES_LIBDIR=$LD_LIBRARY_PATH/xtables
        for kind in nft legacy; do for family in 4 6; do
            case $family in
            4) name=iptables net=10.0.0.0/24 address=10.0.0.1 range=10.0.0.1-10.0.0.9;;
            6) name=ip6tables net=fd00::/64 address=fd00::1 range=fd00::1-fd00::9;;
            esac
            sed \"s,ADDRESS,$address,; s,SUBNET,$net,g; s,RANGE,$range,\" /rules | while read table rule; do
                ${LD_LIBRARY_PATH}/ld-linux-x86-64.so.2 /host/usr/sbin/xtables-$kind-multi $name \\
                    -w -t $table -A $rule 2>&1 || echo \"refused: $kind $name -t $table -A $rule\"
            done
            echo done
        done; done";
    let said = engine.script(
        &format!(
            "run --rm --network none --pull never --privileged -v /usr:/host/usr:ro -v {rules}:/rules:ro busybox"
        ),
        script,
    );
    let refused: Vec<&str> = said.lines().filter(|line| *line != "done").collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert_eq!(said.lines().count(), 4, "{said}");
}

/// If it fails, the networks of clusters (flannel, Calico, Cilium, WireGuard, ipvlan) cannot be made in a container.
#[test]
fn links_of_clusters_can_be_made() {
    let engine = Engine::new("links");
    let script = "
        export LD_LIBRARY_PATH=/host/usr/lib/x86_64-linux-gnu:/host/lib/x86_64-linux-gnu
        ip() { /host/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 /host$IP \"$@\"; }
        set -e
        [ \"$(ls /sys/class/net)\" = lo ]
        ip link add d0 type dummy; ip link set d0 up
        ip link add b0 type bridge; ip link add v0 type veth peer name v1
        ip link add x0 type vxlan id 5 dstport 8472 dev d0
        ip link add w0 type wireguard
        ip link add m0 link d0 type macvlan mode bridge
        ip link add i0 link v0 type ipvlan mode l2
        ip link set w0 up; ip link set x0 up
        ls /sys/class/net";
    let said = engine.script(
        &format!(
            "run --rm --network none --pull never --privileged -e IP={} -v /usr:/host/usr:ro \
             -v /lib:/host/lib:ro busybox",
            host("realpath $(which ip)").trim()
        ),
        script,
    );
    assert_eq!(said, "b0\nd0\ni0\nlo\nm0\nv0\nv1\nw0\nx0");
}
