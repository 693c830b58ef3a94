#![allow(missing_docs, clippy::unwrap_used, dead_code, unused)]
mod support;
use bytes::Bytes;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::Producer as _;
use rdkafka::producer::*;
use rdkafka::{ClientConfig, ClientContext};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::*;
use tidelog_events::ids::*;
use tidelog_http::auth::Caller;
use tidelog_ingest::service::Post;

fn body(b: usize) -> String {
    let items: Vec<String> = (0..100).map(|i| format!(
        r#"{{"mobile_id":"{}","version":0,"sync_status":"pending_sync","ticketdesc":"the lift in block {b} is stuck between floors again","priority":"HIGH","status":"NEW","identifier":"TICKET","client_timestamp":"2026-01-01T10:00:00Z","bu":17,"client":4,"comments":"reported by the guard on duty at the gate"}}"#,
        uuid::Uuid::new_v4())).collect();
    format!(
        r#"{{"client_id":"phone-1","sent_at":"2026-01-01T10:00:00Z","entries":[{}]}}"#,
        items.join(",")
    )
}
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
struct Ctx(std::sync::atomic::AtomicUsize);
impl ClientContext for Ctx {}
impl ProducerContext for Ctx {
    type DeliveryOpaque = ();
    fn delivery(&self, r: &rdkafka::message::DeliveryResult<'_>, _: ()) {
        assert!(r.is_ok());
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore]
async fn speed() {
    let fixture = Arc::new(
        fixture_of(places(), |_, (_, p)| {
            for kv in std::env::var("SET")
                .unwrap_or_default()
                .split(",")
                .filter(|s| !s.is_empty())
            {
                let (k, v) = kv.split_once("=").unwrap();
                p.settings.push((k.into(), v.into()));
            }
        })
        .await,
    );
    let n: usize = std::env::var("BATCHES")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(1000);
    for round in 0..3 {
        let log: Vec<Logged> = if round == 0 { vec![] } else { vec![] };
        let bodies: Vec<Bytes> = (0..n).map(|b| Bytes::from(body(b))).collect();
        for (conc, label) in [(16usize, "16 clients"), (1, "1 client")] {
            let take = if conc == 1 { n / 5 } else { n };
            let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let bodies: Arc<Vec<Bytes>> = Arc::new(
                bodies
                    .iter()
                    .map(|b| {
                        if conc == 1 {
                            Bytes::from(body(1))
                        } else {
                            b.clone()
                        }
                    })
                    .collect(),
            );
            let (c0, t0) = (cpu(), Instant::now());
            let mut tasks = vec![];
            for _ in 0..conc {
                let (f, next, bodies) = (fixture.clone(), next.clone(), bodies.clone());
                tasks.push(tokio::spawn(async move {
                    let domain = f.ingest.registry().by_name("helpdesk").unwrap().clone();
                    let mut lat = vec![];
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if i >= take {
                            return lat;
                        }
                        let t = Instant::now();
                        let post = Post {
                            domain: domain.clone(),
                            caller: Caller {
                                tenant: TenantId::parse("acme").unwrap(),
                                user: UserId::parse("anna").unwrap(),
                                device: None,
                                role: Role::User,
                            },
                            key: None,
                            body: bodies[i].clone(),
                        };
                        f.ingest.post(post, Duration::ZERO).await.unwrap();
                        lat.push(t.elapsed());
                    }
                }));
            }
            let mut lat = vec![];
            for t in tasks {
                lat.extend(t.await.unwrap());
            }
            lat.sort();
            let el = t0.elapsed().as_secs_f64();
            println!(
                "{label}: {:.0} items/s, cpu {:.2} us/item, p50 {:?} p99 {:?}",
                take as f64 * 100.0 / el,
                (cpu() - c0) * 1e6 / (take as f64 * 100.0),
                lat[lat.len() / 2],
                lat[lat.len() * 99 / 100]
            );
        }
        // bare
        let records = Arc::new({
            let mut v = vec![];
            for b in &bodies {
                let parsed: serde_json::Value = serde_json::from_slice(b).unwrap();
                for (i, e) in parsed["entries"].as_array().unwrap().iter().enumerate() {
                    v.push((
                        format!("acme/{}", e["mobile_id"].as_str().unwrap()),
                        e.to_string(),
                        i,
                    ));
                }
            }
            v
        });
        let prefix = fixture.prefix.clone();
        tokio::task::spawn_blocking(move || {
            let p: ThreadedProducer<Ctx> =
                rdkafka::config::FromClientConfigAndContext::from_config_and_context(
                    ClientConfig::new()
                        .set("bootstrap.servers", places().brokers)
                        .set("enable.idempotence", "true")
                        .set("acks", "all")
                        .set("partitioner", "murmur2_random")
                        .set("compression.type", "lz4")
                        .set("linger.ms", std::env::var("LINGER").unwrap_or("0".into())),
                    Ctx(0.into()),
                )
                .unwrap();
            let topic = format!("{prefix}sync.helpdesk.v1");
            let (c0, t0) = (cpu(), Instant::now());
            let total = records.len();
            for (key, value, i) in records.iter() {
                loop {
                    let h = [
                        ("ce_specversion", "1.0"),
                        ("ce_id", "0190b5b0-0000-8000-8000-000000000000"),
                        ("ce_type", "tidelog.helpdesk.create"),
                        ("ce_source", "/tenants/acme/users/anna/devices/phone-1"),
                        ("ce_subject", &key[5..]),
                        ("ce_time", "2026-01-01T10:00:00.000000Z"),
                        ("ce_batch", "0190b5b0-0000-8000-8000-000000000000/17"),
                        ("ce_baseversion", "0"),
                        ("ce_policy", "preserve_escalation"),
                        ("content-type", "application/json"),
                    ];
                    let mut hs = OwnedHeaders::new_with_capacity(10);
                    for (k, v) in h {
                        hs = hs.insert(Header {
                            key: k,
                            value: Some(v),
                        });
                    }
                    match p.send(BaseRecord::to(&topic).key(key).payload(value).headers(hs)) {
                        Ok(()) => break,
                        Err(_) => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            }
            while p.client().context().0.load(std::sync::atomic::Ordering::Relaxed) < total {
                std::thread::sleep(Duration::from_millis(1));
            }
            let el = t0.elapsed().as_secs_f64();
            println!(
                "bare: {:.0} items/s, cpu {:.2} us/item",
                total as f64 / el,
                (cpu() - c0) * 1e6 / total as f64
            );
        })
        .await
        .unwrap();
    }
}

#[test]
#[ignore]
fn parts() {
    use tidelog_events::batch::*;
    use tidelog_events::domain::*;
    use tidelog_events::envelope::*;
    use tidelog_events::item::*;
    let reg = Registry::shipped();
    let domain = reg.by_name("helpdesk").unwrap().clone();
    let b = body(1);
    let (t, u, d) = (
        TenantId::parse("acme").unwrap(),
        UserId::parse("anna").unwrap(),
        DeviceId::parse("phone-1").unwrap(),
    );
    let n = 2000;
    let time = |label: &str, f: &mut dyn FnMut()| {
        let t0 = Instant::now();
        for _ in 0..n {
            f()
        }
        println!(
            "{label}: {:.2} us/item",
            t0.elapsed().as_secs_f64() * 1e6 / (n as f64 * 100.0)
        );
    };
    println!("item bytes {}", b.len() / 100);
    time("parse", &mut || {
        std::hint::black_box(Batch::parse(&b).unwrap());
    });
    let batch = Batch::parse(&b).unwrap();
    time("fingerprint", &mut || {
        std::hint::black_box(Fingerprint::of("POST /x", &t, &u, &d, &batch.entries));
    });
    let now = chrono::Utc::now();
    let posting = Posting {
        tenant: &t,
        user: &u,
        device: &d,
        device_now: now,
        default_time: now,
    };
    time("judge", &mut || {
        for e in &batch.entries {
            std::hint::black_box(judge(&domain, e, &posting).unwrap());
        }
    });
    let fp = Fingerprint([1; 32]);
    let stamp = Stamp::new(
        t.clone(),
        u.clone(),
        d.clone(),
        Role::User,
        None,
        BatchId::of("k", &fp),
    );
    let items: Vec<_> = batch
        .entries
        .iter()
        .map(|e| judge(&domain, e, &posting).unwrap())
        .collect();
    time("headers", &mut || {
        for (i, it) in items.iter().enumerate() {
            std::hint::black_box(stamp.headers(
                &domain.table,
                it.operation,
                &it.subject,
                i as u32,
                now,
                it.base,
                domain.policy,
            ));
        }
    });
    time("native headers", &mut || {
        for (i, it) in items.iter().enumerate() {
            let h = [
                ("ce_specversion", "1.0"),
                ("ce_id", "0190b5b0-0000-8000-8000-000000000000"),
                ("ce_type", "tidelog.helpdesk.create"),
                ("ce_source", "/tenants/acme/users/anna/devices/phone-1"),
                ("ce_subject", "0190b5b0-0000-8000-8000-000000000000"),
                ("ce_time", "2026-01-01T10:00:00.000000Z"),
                ("ce_batch", "0190b5b0-0000-8000-8000-000000000000/17"),
                ("ce_baseversion", "0"),
                ("ce_policy", "preserve_escalation"),
                ("content-type", "application/json"),
            ];
            let mut hs = OwnedHeaders::new_with_capacity(10);
            for (k, v) in h {
                hs = hs.insert(Header {
                    key: k,
                    value: Some(v),
                });
            }
            std::hint::black_box(hs);
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore]
async fn syncs() {
    let fixture = fixture().await;
    for setting in ["fsync", "synchronous_commit", "wal_sync_method"] {
        let row = fixture
            .db
            .query_one(&format!("SHOW {setting}"), &[])
            .await
            .unwrap();
        println!("{setting} {}", row.get::<_, String>(0));
    }
    let stat = "SELECT wal_sync FROM pg_stat_wal";
    for (what, n) in [("gateway", 300), ("plain", 300)] {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = fixture.count(stat).await;
        let t0 = Instant::now();
        for i in 0..n {
            if what == "gateway" {
                let r = fixture
                    .post(
                        &format!(r#"{{"client_id":"phone-1","entries":[{{"a":{i}}}]}}"#),
                        &[],
                    )
                    .await;
                assert_eq!(r.status(), 200);
            } else {
                fixture.db.execute("UPDATE idempotency_records SET hit_count = hit_count + 1 WHERE ctid = (select ctid from idempotency_records limit 1)", &[]).await.unwrap();
            }
        }
        let el = t0.elapsed();
        tokio::time::sleep(Duration::from_secs(2)).await;
        println!(
            "{what}: {n} requests in {el:?}, {} WAL syncs",
            fixture.count(stat).await - before
        );
    }
}
