//! `ginnel service`: ports that nodes publish under a name.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use model::{
    api::{ListQuery, NewService, Service},
    name::Label,
};

use crate::{
    admin::{all, client, node, or_dash},
    api::Client,
    cli::Global,
    enrolment::State,
    remedy::Advise as _,
    terminal::{self, Column},
};

/// List, publish and withdraw services
///
/// A service is a local port of a node under a name: `web` on port 8080 answers at
/// `web.svc.internal:8080`. Several nodes may offer one name.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel service add web --port 8080                       this node's 127.0.0.1:8080
  ginnel service add db --port 5432 --target 10.0.0.7:5432
  ginnel service list
  ginnel service remove web";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the services of the organisation
    List,
    /// Show who offers a service
    Show {
        /// Its name
        name: Label,
    },
    /// Publish a port
    Add {
        /// The name of the service
        name: Label,
        /// The port at the node's address
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Where the node leads each connection [default: 127.0.0.1 and the port]
        #[arg(long, value_name = "HOST:PORT")]
        target: Option<String>,
        /// The node, if it is not this machine (administrators)
        #[arg(long)]
        node: Option<Label>,
    },
    /// Withdraw a service
    Remove {
        /// Its name
        name: Label,
        /// The node, if it is not this machine (administrators)
        #[arg(long)]
        node: Option<Label>,
    },
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    match args.action {
        Action::List => {
            let services = services(&own(global)?, None).await?;
            terminal::list(&services, COLUMNS, global.json)?;
        }
        Action::Show { name } => {
            let services = services(&own(global)?, Some(name.clone())).await?;
            require(&services, &name)?;
            terminal::list(&services, COLUMNS, global.json)?;
        }
        Action::Add {
            name,
            port,
            target,
            node,
        } => {
            let (client, node) = publisher(global, node).await?;
            let request = NewService {
                name,
                node,
                port,
                target,
            };
            let own = request.node.is_none();
            let service = client.add_service(&request).await?;
            if own {
                keep_current_map(&client, global).await;
            }
            terminal::show(&service, COLUMNS, global.json)?;
        }
        Action::Remove { name, node } => {
            let (client, node) = publisher(global, node).await?;
            let node = match node {
                Some(node) => node,
                None => State::locate(global)?.enrolment()?.id,
            };
            let mut services = services(&client, Some(name.clone())).await?;
            services.retain(|service| service.node == node);
            require(&services, &name)?;
            for service in services {
                client.remove_service(service.id).await?;
            }
            terminal::done(format_args!("service {name} is withdrawn"), global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Connects as this node, which may see its organisation and change what it publishes itself.
fn own(global: &Global) -> Result<Client> {
    let enrolment = State::locate(global)?.enrolment()?;
    Ok(Client::with_token(&enrolment.url, enrolment.token)?)
}

/// Keeps the map with this node's new service, so that a start serves it from its first moment.
async fn keep_current_map(client: &Client, global: &Global) {
    let kept = async {
        let map = client.map().await?;
        State::locate(global)?.keep_map(&map)
    };
    if let Err(error) = kept.await {
        tracing::debug!("keep the map: {error:#}");
    }
}

/// Connects as this node, or as the administrator who named another one.
async fn publisher(
    global: &Global,
    node: Option<Label>,
) -> Result<(Client, Option<model::id::NodeId>)> {
    match node {
        None => Ok((own(global)?, None)),
        Some(name) => {
            let client = client(global)?;
            let id = node::find(&client, None, &name).await?.id;
            Ok((client, Some(id)))
        }
    }
}

async fn services(client: &Client, name: Option<Label>) -> Result<Vec<Service>> {
    let query = ListQuery {
        name,
        ..ListQuery::default()
    };
    all(query, async |query| client.services(query).await).await
}

fn require(services: &[Service], name: &Label) -> Result<()> {
    services
        .first()
        .map(|_| ())
        .with_context(|| format!("nobody offers a service `{name}` here"))
        .remedy("see `ginnel service list`")
}

const COLUMNS: &[Column<Service>] = &[
    ("ID", |service| service.id.to_string()),
    ("NAME", |service| format!("{}.svc.internal", service.name)),
    ("NODE", |service| service.node_name.to_string()),
    ("PORT", |service| service.port.to_string()),
    ("TARGET", |service| or_dash(service.target.as_ref())),
];
