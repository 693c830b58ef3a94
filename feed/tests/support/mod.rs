//! A schema of its own for each test, the read side over it, and callers who ask it over HTTP.
#![allow(dead_code, unreachable_pub)] // each test file uses its part
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/support/stack.rs"]
mod stack;

#[path = "../../../tests/support/proof.rs"]
pub(crate) mod proof;
pub mod rows;
pub mod world;

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use serde_json::Value;
use tidelog_events::domain::{Registry, create_tables};
use tidelog_events::ids::{Role, TenantId, UserId};
use tidelog_events::position::Positions;
use tidelog_feed::positions::{self, PositionsConfig};
use tidelog_feed::{Feed, FeedParts, SESSION_SETTINGS, routes};
use tidelog_http::auth::{Auth, Claims, mint};
use tokio::sync::watch;
use tokio_postgres::{Config, NoTls};
use uuid::Uuid;
use warp::filters::BoxedFilter;

const SECRET: &str = "a secret of more than thirty-two bytes";

/// The prefix of the topics in these tests.
pub const PREFIX: &str = "t.";

/// A schema, and the read side over it.
pub struct Stage {
    pub schema: String,
    pub config: Config,
    pub pool: Pool,
    pub registry: Arc<Registry>,
    pub positions: watch::Receiver<Arc<Positions>>,
    pub routes: BoxedFilter<(warp::reply::Response,)>,
}

/// Somebody who asks.
#[derive(Debug, Clone)]
pub struct Asker {
    pub tenant: String,
    pub user: String,
    pub role: Role,
}

/// Status, headers and body of an answer.
pub struct Told {
    pub status: u16,
    pub retry_after: Option<String>,
    pub text: String,
    pub body: Value,
}

/// A new schema with all tables.
pub async fn stage() -> Stage {
    let url = &stack::shared().database_url;
    stage_in(url, &format!("feed_{}", Uuid::new_v4().simple()), true).await
}

/// The read side over a schema, made first if `fresh`.
pub async fn stage_in(url: &str, schema: &str, fresh: bool) -> Stage {
    let mut config: Config = url.parse().unwrap();
    let settings: String = SESSION_SETTINGS
        .iter()
        .map(|(name, value)| format!(" -c {name}={value}"))
        .collect();
    config.options(format!("-c search_path={schema}{settings}"));
    let pool = Pool::builder(Manager::new(config.clone(), NoTls))
        .max_size(4)
        .build()
        .unwrap();
    let registry = Arc::new(Registry::shipped());
    if fresh {
        let client = pool.get().await.unwrap();
        client
            .batch_execute(&format!("CREATE SCHEMA {schema}"))
            .await
            .unwrap();
        client.batch_execute(&stack::MIGRATIONS.concat()).await.unwrap();
        for domain in registry.iter() {
            client.batch_execute(&create_tables(domain)).await.unwrap();
        }
    }
    let channel = tidelog_events::positions_channel(schema);
    let watched = PositionsConfig {
        database: config.clone(),
        channel,
        poll: Duration::from_millis(500),
    };
    let (positions, work) = positions::watch(watched);
    tokio::spawn(work);
    let parts = FeedParts {
        secret: None,
        accord: tokio::sync::watch::channel(tidelog_events::seal::Accord::Unused).1,
        registry: registry.clone(),
        pool: pool.clone(),
        positions: positions.clone(),
        topic_prefix: PREFIX.into(),
    };
    let routes = routes(Arc::new(Feed::new(parts)), Auth::new(SECRET).unwrap());
    Stage {
        schema: schema.into(),
        config,
        pool,
        registry,
        positions,
        routes,
    }
}

impl Stage {
    pub async fn execute(&self, sql: &str) {
        let client = self.pool.get().await.unwrap();
        client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
    }

    /// Asks with a path and query, and headers.
    pub async fn ask(&self, who: &Asker, path: &str, headers: &[(&str, &str)]) -> Told {
        let mut request = warp::test::request()
            .path(path)
            .header("authorization", who.bearer());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request
            .reply(&warp::Filter::recover(
                self.routes.clone(),
                tidelog_http::problem::recover,
            ))
            .await;
        let text = String::from_utf8(response.body().to_vec()).unwrap();
        Told {
            status: response.status().as_u16(),
            retry_after: response
                .headers()
                .get("retry-after")
                .map(|value| value.to_str().unwrap().to_owned()),
            body: serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")),
            text,
        }
    }

    /// Asks and expects 200.
    pub async fn get(&self, who: &Asker, path: &str) -> Value {
        let told = self.ask(who, path, &[]).await;
        assert_eq!(told.status, 200, "{path}: {}", told.text);
        told.body
    }

    /// Takes the schema away again.
    pub async fn strike(self) {
        self.execute(&format!("DROP SCHEMA {} CASCADE", self.schema))
            .await;
    }
}

impl Asker {
    pub fn new(tenant: &str, user: &str, role: Role) -> Asker {
        Asker {
            tenant: tenant.into(),
            user: user.into(),
            role,
        }
    }

    pub fn bearer(&self) -> String {
        let claims = Claims {
            tenant: TenantId::parse(&self.tenant).unwrap(),
            sub: UserId::parse(&self.user).unwrap(),
            device: None,
            role: self.role,
            exp: jsonwebtoken::get_current_timestamp() + 600,
        };
        format!("Bearer {}", mint(SECRET, &claims).unwrap())
    }
}
