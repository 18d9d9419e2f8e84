//! Layers of container images in a guest: what the store makes of them, by DAX and overlayfs.

use std::path::Path;

use crate::harness::{TempDir, Vm, guest_file, host, program, script_disk};

/// Two layers, and a `docker save` archive of them; prints their digests.
const LAYERS: &str = r#"
    mkdir -p below/etc below/old below/replaced below/many above/etc above/replaced
    echo small >below/etc/tool; ln below/etc/tool below/hard
    chown 1234:100000 below/etc/tool; chmod 6755 below/etc/tool; touch -d @1000000000 below/etc/tool
    echo x | tee below/etc/gone below/old/x >below/replaced/x
    for n in $(seq 500); do head -c $((n * 16)) /dev/zero >below/many/file-$n; done
    head -c 3000000 /dev/urandom >below/big
    touch above/etc/.wh.gone above/.wh.old above/replaced/.wh..wh..opq
    echo y >above/replaced/y
    for layer in below above; do
        tar --numeric-owner --sort=name -C $layer -cf $layer.tar .
    done
    below=$(sha256sum <below.tar | cut -d ' ' -f 1) above=$(sha256sum <above.tar | cut -d ' ' -f 1)
    echo '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers",
        "diff_ids":["sha256:'$below'","sha256:'$above'"]}}' >config.json
    echo '[{"Config":"config.json","Layers":["below.tar","above.tar"]}]' >manifest.json
    tar -cf image.tar manifest.json config.json below.tar above.tar
    echo $below $above $(md5sum <below/big | cut -d ' ' -f 1)"#;

const SCRIPT: &str = r#"
    mount -t tmpfs t /tmp && cd /tmp && mkdir a b m || exit 1
    mount -t erofs -o ro,dax=always /dev/pmem1 a || exit 2
    mount -t erofs -o ro,dax=always /dev/pmem2 b || exit 3
    mount -t overlay o -o lowerdir=b:a m && cd m || exit 4
    echo "dax $(grep -c 'erofs.*dax=always' /proc/mounts)."
    echo "tree $(find . ! -path './many/*' | sort | tr '\n' ' ')."
    echo "many $(ls many | wc -l) $(cat many/file-* | wc -c)."
    echo "big $(md5sum <big | cut -d ' ' -f 1)."
    echo "stat $(stat -c '%a %u:%g %h %Y' etc/tool)."
    echo "hard $(cat hard) $(($(stat -c %i hard) - $(stat -c %i etc/tool)))."
    dmesg | grep -i erofs
    exit 0"#;

/// If it fails, a guest sees other files than the image has: wrong owners, times or rights, files that
/// a layer deleted, damaged content, or no DAX.
#[test]
fn a_guest_sees_the_files_of_an_image() {
    let dir = TempDir::new("images");
    let path = dir.join("").display().to_string();
    let made = host(&format!("cd {path}\n{LAYERS}"));
    let [below, above, big] = made.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{made}");
    };
    let program = Path::new(program()).with_file_name("cofferdam-container");
    let program = program.display();
    host(&format!(
        "COFFERDAM_DATA={path}/data {program} load -i {path}/image.tar"
    ));

    let layer = |id: &str| format!("file={path}/data/images/layers/{id}.erofs,ro");
    let root = format!("{},pmem,ro", guest_file("rootfs.erofs").display());
    let disk = format!("path={},ro", script_disk(&dir, SCRIPT).display());
    let mut arguments = vec!["--memory", "128M", "--rootfs", &root, "--disk", &disk];
    let layers = [layer(below), layer(above)];
    arguments.extend(["--pmem", &layers[0], "--pmem", &layers[1]]);
    arguments.extend(["--cmdline", "quiet -- sh /dev/vda"]);
    let console = Vm::start(&arguments).end().expect(0).console;
    for line in [
        "dax 3.",
        "tree . ./big ./etc ./etc/tool ./hard ./many ./replaced ./replaced/y .",
        &format!("many 500 {}.", 16 * 500 * 501 / 2),
        &format!("big {big}."),
        "stat 6755 1234:100000 2 1000000000.",
        "hard small 0.",
    ] {
        assert!(console.contains(line), "{line}: {console}");
    }
    assert!(!console.contains("orrupted"), "{console}");
}
