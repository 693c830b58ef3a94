//! A phone: somebody's device with a token, that posts batches and pulls changes; and the copy of the data that it
//! keeps.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use tidelog_http::auth::{Claims, DeviceId, Role, TenantId, UserId, mint};
use uuid::Uuid;

use super::http::{Answer, Http};
use super::service::Deployment;

/// A device of a user of a tenant.
pub(crate) struct Phone {
    pub(crate) http: Http,
    pub(crate) tenant: String,
    pub(crate) user: String,
    pub(crate) device: String,
    pub(crate) bearer: String,
}

/// A tenant that nobody else has.
pub(crate) fn tenant(name: &str) -> String {
    format!("{name}/{}", Uuid::new_v4().simple())
}

impl Phone {
    /// A field worker's.
    pub(crate) fn new(deployment: &Deployment, tenant: &str, user: &str) -> Phone {
        Phone::of(deployment, tenant, user, "phone-1", Role::User)
    }

    pub(crate) fn of(deployment: &Deployment, tenant: &str, user: &str, device: &str, role: Role) -> Phone {
        Phone {
            http: Http::new(deployment.url()),
            tenant: tenant.to_owned(),
            user: user.to_owned(),
            device: device.to_owned(),
            bearer: format!(
                "Bearer {}",
                token(&deployment.jwt_secret, tenant, user, None, role, 3600)
            ),
        }
    }

    /// The body of a batch.
    pub(crate) fn batch<T: AsRef<str>>(&self, entries: &[T]) -> String {
        let entries: Vec<&str> = entries.iter().map(AsRef::as_ref).collect();
        format!(
            r#"{{"client_id":"{}","entries":[{}]}}"#,
            self.device,
            entries.join(",")
        )
    }

    /// Posts a batch and waits for its final answer.
    pub(crate) async fn post<T: AsRef<str>>(&self, domain: &str, entries: &[T]) -> Answer {
        self.send_batch(domain, &[("prefer", "wait=30")], self.batch(entries))
            .await
    }

    /// Posts a batch under a key and waits for its final answer.
    pub(crate) async fn post_keyed<T: AsRef<str>>(&self, domain: &str, key: &str, entries: &[T]) -> Answer {
        let headers = [("prefer", "wait=30"), ("idempotency-key", key)];
        self.send_batch(domain, &headers, self.batch(entries)).await
    }

    /// Posts one item, which has to be applied; answers its entry in `synced_items`.
    #[track_caller]
    pub(crate) fn apply(&self, domain: &str, item: Value) -> impl Future<Output = Value> {
        let at = std::panic::Location::caller();
        async move {
            let answer = self.post(domain, &[item.to_string()]).await;
            assert_eq!(answer.status, 200, "{at}: {}", answer.text());
            let entry = answer.json()["synced_items"][0].clone();
            let status = entry["status"].as_str().unwrap_or_default();
            assert!(
                ["created", "updated"].contains(&status),
                "{at}: {}",
                answer.text()
            );
            entry
        }
    }

    /// The body of a mixed batch.
    pub(crate) fn mixed<T: AsRef<str>>(&self, items: &[T]) -> String {
        let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
        format!(
            r#"{{"client_id":"{}","items":[{}]}}"#,
            self.device,
            items.join(",")
        )
    }

    /// Posts a body as a mixed batch.
    pub(crate) async fn send_mixed(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, "/api/v1/sync/batch", headers, body).await
    }

    /// Posts a mixed batch under a key and waits for its final answer.
    pub(crate) async fn post_mixed<T: AsRef<str>>(&self, key: &str, items: &[T]) -> Answer {
        let headers = [("prefer", "wait=30"), ("idempotency-key", key)];
        self.send_mixed(&headers, self.mixed(items)).await
    }

    /// Posts a mixed batch under a new key; answers its results.
    pub(crate) async fn results<T: AsRef<str>>(&self, items: &[T]) -> Vec<Value> {
        let answer = self.post_mixed(&Uuid::new_v4().to_string(), items).await;
        let answer = answer.expect(200).json();
        assert_eq!(answer["status"], "complete", "{answer}");
        answer["results"].as_array().expect("results").clone()
    }

    pub(crate) async fn send_batch(
        &self,
        domain: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.send(Method::POST, &format!("/api/v1/{domain}/sync"), headers, body)
            .await
    }

    /// A request with this phone's token; a body is JSON unless the headers say otherwise.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.try_send(method, path, headers, body)
            .await
            .unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// The same where the connection may fail.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let body = body.into();
        let mut all = vec![("authorization", self.bearer.as_str())];
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
            all.push(("content-type", "application/json"));
        }
        all.extend(headers);
        self.http.try_send(method, path, &all, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// One page of changes.
    pub(crate) async fn page(&self, domain: &str, query: &str) -> Value {
        self.get(&format!("/api/v1/{domain}/changes?{query}"))
            .await
            .expect(200)
            .json()
    }

    /// The changes of a first sync or by filters, page by page to the end.
    pub(crate) async fn pull(&self, domain: &str, query: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.page(domain, &format!("{query}{cursor}")).await;
            items.extend(page["items"].as_array().expect("items").clone());
            if page["has_more"] == false {
                return items;
            }
            cursor = format!("&cursor={}", page["cursor"].as_str().expect("a cursor"));
        }
    }

    pub(crate) async fn record(&self, domain: &str, id: &str) -> Answer {
        self.get(&format!("/api/v1/{domain}/records/{id}")).await
    }
}

/// A token; a negative `ttl` has ended.
pub(crate) fn token(
    secret: &str,
    tenant: &str,
    user: &str,
    device: Option<&str>,
    role: Role,
    ttl: i64,
) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_secs();
    let claims = Claims {
        tenant: TenantId::parse(tenant).expect("a tenant"),
        sub: UserId::parse(user).expect("a user"),
        device: device.map(|device| DeviceId::parse(device).expect("a device")),
        role,
        exp: now.saturating_add_signed(ttl),
    };
    mint(secret, &claims).expect("a token")
}

/// What a phone keeps of a domain: it follows the cursor and does what the pages say.
#[derive(Default)]
pub(crate) struct Replica {
    pub(crate) records: BTreeMap<String, Value>,
    pub(crate) cursor: Option<String>,
}

impl Replica {
    /// Takes pages until there are no more; answers all that they told.
    pub(crate) async fn catch_up(&mut self, phone: &Phone, domain: &str, limit: usize) -> Vec<Value> {
        let mut told = Vec::new();
        while self.step(phone, domain, limit, &mut told).await {}
        told
    }

    /// Takes one page; answers whether there are more.
    pub(crate) async fn step(
        &mut self,
        phone: &Phone,
        domain: &str,
        limit: usize,
        told: &mut Vec<Value>,
    ) -> bool {
        let page = phone.page(domain, &self.query(limit)).await;
        self.take(&page, limit, told)
    }

    /// Takes one page, if the service answers at all; answers whether there are more.
    pub(crate) async fn try_step(&mut self, phone: &Phone, domain: &str, limit: usize) -> Option<bool> {
        let path = format!("/api/v1/{domain}/changes?{}", self.query(limit));
        let answer = phone.try_send(Method::GET, &path, &[], Bytes::new()).await.ok()?;
        match answer.status {
            200 => Some(self.take(&answer.json(), limit, &mut Vec::new())),
            status => {
                // Told to come back: that is an answer too.
                assert!(status == 429 || status >= 500, "{}", answer.text());
                None
            }
        }
    }

    fn query(&self, limit: usize) -> String {
        let cursor = self
            .cursor
            .as_ref()
            .map(|cursor| format!("&cursor={cursor}"))
            .unwrap_or_default();
        format!("limit={limit}{cursor}")
    }

    fn take(&mut self, page: &Value, limit: usize, told: &mut Vec<Value>) -> bool {
        let items = page["items"].as_array().expect("items").clone();
        assert!(items.len() <= limit, "{} items, asked for {limit}", items.len());
        for item in &items {
            let id = item
                .get("mobile_id")
                .or(item.get("item_id"))
                .and_then(Value::as_str)
                .expect("an identity");
            if item["deleted"] == true {
                self.records.remove(id);
                continue;
            }
            let version = |item: &Value| item["version"].as_i64().expect("a version");
            if let Some(before) = self.records.insert(id.to_owned(), item.clone()) {
                assert!(
                    version(&before) <= version(item),
                    "a record went back: {before} then {item}"
                );
            }
        }
        told.extend(items);
        self.cursor = Some(page["cursor"].as_str().expect("a cursor").to_owned());
        page["has_more"] == true
    }
}
