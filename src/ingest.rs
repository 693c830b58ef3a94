//! `tidelog ingest`: a gateway only, with all of the HTTP interface, reading and writing.

use anyhow::Result;
use clap::Args;
use tokio::sync::oneshot;

use crate::domains;
use crate::gateway::{self, GatewaySettings};
use crate::preflight::preflight;
use crate::settings::ListenSettings;
use crate::shutdown::until_signal;

/// Runs a gateway: the HTTP interface, reading and writing
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Runs a gateway: it takes batches into the log and answers from Postgres. Start as many as you like \
                  behind a load balancer that looks at /readyz. What it takes is applied by `tidelog project`. SIGINT \
                  or SIGTERM stops it once requests in flight are answered.",
    after_help = "Example:\n  tidelog ingest --listen 0.0.0.0:8080\n\nExit codes:\n  \
                  0  stopped by a signal, everything finished\n  \
                  1  failed, or not everything was finished in time\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct IngestArgs {
    #[command(flatten)]
    listen: ListenSettings,
    #[command(flatten)]
    settings: GatewaySettings,
}

/// Runs the command.
pub(crate) async fn ingest(args: IngestArgs) -> Result<()> {
    let settings = args.settings;
    let registry = domains::registry(&settings.domains)?;
    let listener = gateway::listen(args.listen.listen).await?;
    let deadline = settings.shutdown.shutdown_deadline + settings.notice.shutdown_notice;
    until_signal(deadline, async |shutdown| {
        preflight(&settings.kafka, &settings.database, &settings.seal, &registry).await?;
        let (ready, _) = oneshot::channel();
        gateway::run(&settings, registry, listener, shutdown, ready).await
    })
    .await
}
