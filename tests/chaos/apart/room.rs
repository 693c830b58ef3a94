//! A Postgres whose disk is full, and one that has no connection left: what its own files and its own limits say, and no
//! SQLSTATE that a trigger raises.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{folder, prepared};
use crate::broken::LOST;
use crate::field::Field;
use crate::run::{BRIEF, judge, run, seconds, without_on};
use crate::support::db::Db;
use crate::support::own_stack::OwnStack;

/// Makes the disk full for as long as a file is there.
struct Disk {
    flag: PathBuf,
    library: PathBuf,
}

impl Disk {
    /// Where Postgres reaches it, whoever it runs as.
    fn new() -> Disk {
        let dir = std::env::temp_dir().join(format!("tidelog-full-disk-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        let disk = Disk {
            flag: dir.join("full"),
            library: dir.join("full_disk.so"),
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/apart/full_disk.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
        let made = compiler
            .arg(&disk.library)
            .arg(source)
            .arg("-ldl")
            .output()
            .expect("cc is there, as Rust wants it too");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        disk
    }

    async fn full(&self, for_seconds: f64) {
        std::fs::write(&self.flag, "").expect("a file");
        seconds(for_seconds).await;
        std::fs::remove_file(&self.flag).expect("it is there");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.library.parent().expect("a folder"));
    }
}

/// Ends all connections of the service, and lets it have three.
async fn without_connections(stack: &OwnStack, for_seconds: f64) {
    let url = stack.env().database_url;
    let admin = url.replacen("//tidelog:", "//postgres:", 1);
    let admin = Db::connect(&admin, "public").await;
    admin.rows("ALTER ROLE tidelog CONNECTION LIMIT 3", &[]).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'tidelog'";
    admin.rows(end, &[]).await;
    seconds(for_seconds).await;
    admin.rows("ALTER ROLE tidelog CONNECTION LIMIT -1", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_with_a_full_disk_or_without_connections() {
    let disk = Disk::new();
    let text = |path: &Path| path.to_str().expect("a path of text").to_owned();
    let (library, flag) = (text(&disk.library), text(&disk.flag));
    let variables = [("LD_PRELOAD", library.as_str()), ("FULL_DISK", &flag)];
    let stack = OwnStack::start_with(&folder("room"), &["--backing-only"], &variables);
    let said = || std::fs::read_to_string(stack.data.join("postgres/server.log")).expect("a log");

    // A position that moves by itself passes over what found no room.
    let deployment = prepared("roomy", &stack).await;
    without_on(&deployment, "transaction", &LOST, async |_, _| {
        disk.full(2.0).await;
        0
    })
    .await;

    let deployment = prepared("room", &stack).await;
    let field = Field::start(&deployment, &deployment);
    let ended = run(field, u64::from(std::process::id()), BRIEF, async |_, _| {
        for _ in 0..2 {
            disk.full(1.5).await;
            seconds(1.0).await;
            without_connections(&stack, 1.5).await;
            seconds(1.0).await;
        }
        0
    })
    .await;
    for complaint in ["No space left on device", "too many connections for role"] {
        assert!(said().contains(complaint), "Postgres did not say: {complaint}");
    }
    judge(ended).await;
    assert_eq!(stack.process.terminate(), 0);
}
