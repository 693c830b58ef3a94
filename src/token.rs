//! `tidelog token`: a bearer token for trying things out, signed with the deployment's secret. What a token says is
//! the `http` crate's to know.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use tidelog_http::auth::{self, Claims, DeviceId, Role, TenantId, UserId};

use crate::output::OutputArgs;
use crate::settings::{self, AuthSettings};

/// Prints a bearer token
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  TOKEN=$(tidelog token --tenant acme --user asha --device phone-1)\n  \
                  curl -H \"Authorization: Bearer $TOKEN\" $TIDELOG_URL/api/v1/helpdesk/changes\n\nExit codes:\n  \
                  0  printed\n  1  failed\n  2  wrong command line or setting"
)]
pub(crate) struct TokenArgs {
    /// The customer whose data it opens
    #[arg(long, value_parser = |text: &str| TenantId::parse(text))]
    tenant: TenantId,
    /// The person it speaks for
    #[arg(long, value_parser = |text: &str| UserId::parse(text))]
    user: UserId,
    /// The only device that may use it
    #[arg(long, value_parser = |text: &str| DeviceId::parse(text))]
    device: Option<DeviceId>,
    /// user, supervisor or operator
    #[arg(long, default_value = "user", value_parser = role)]
    role: Role,
    /// How long it lasts, like 15m, 1h or 30d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = settings::duration)]
    ttl: Duration,
    #[command(flatten)]
    auth: AuthSettings,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Minted {
    token: String,
    /// RFC 3339.
    expires_at: String,
}

fn role(text: &str) -> Result<Role, &'static str> {
    Role::parse(text).ok_or("give user, supervisor or operator")
}

/// Runs the command.
pub(crate) fn run(args: TokenArgs) -> Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("this machine's clock stands before 1970: set it")?;
    // A part of a second would end it at once.
    let exp = (now + args.ttl).as_secs().max(now.as_secs() + 1);
    let claims = Claims {
        tenant: args.tenant,
        sub: args.user,
        device: args.device,
        role: args.role,
        exp,
    };
    let token = auth::mint(args.auth.jwt_secret.reveal(), &claims).context("cannot sign the token")?;
    let expires_at = i64::try_from(exp)
        .ok()
        .and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0))
        .context("it would outlive the calendar: give a shorter --ttl")?
        .to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    args.output
        .output
        .print(&Minted { token, expires_at }, |minted| minted.token.clone())
}
