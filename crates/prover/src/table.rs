//! The expected truth table: every pair of pods, every port, by address and through services.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{Decision, PodRef, Protocol, World, decide};

/// Name of a cell, for example `hf-x/a>hf-y/b:80/tcp@ip`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CellId(pub String);

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the destination is addressed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// By the pod's address.
    Ip,
    /// By the name of a service with this pod as its only backend.
    Service {
        /// The service's name, in the destination's namespace.
        name: String,
        /// The service's port.
        port: u16,
    },
}

/// Which routes a table should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Pod addresses.
    Ip,
    /// Service names; they need cluster DNS.
    Service,
}

/// What the policies say must happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// The destination must answer.
    Allowed,
    /// The control must stop it.
    Denied,
}

/// One thing to try, with what should come of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Its name, unique in the table.
    pub id: CellId,
    /// The source.
    pub from: PodRef,
    /// The destination.
    pub to: PodRef,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The destination pod's port.
    pub port: u16,
    /// How it is addressed.
    pub route: Route,
    /// What should happen.
    pub expected: Expected,
    /// Why.
    pub decision: Decision,
}

impl Cell {
    /// Whether this cell, when it is answered, shows that the destination of `denied` was alive and reachable.
    ///
    /// A pod's traffic to itself never leaves the pod, so it shows nothing.
    pub fn is_control_of(&self, denied: &Cell) -> bool {
        self.expected == Expected::Allowed
            && self.from != self.to
            && self.to == denied.to
            && self.protocol == denied.protocol
            && self.port == denied.port
            && self.route == denied.route
    }
}

/// Builds the table of a world.
///
/// Services count only where exactly one pod is the backend: otherwise nobody can say who must answer.
/// A pod's own service is left out, because the way back to itself is a matter of the load balancer and not of policies.
pub fn build(world: &World, routes: &[RouteKind]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for from in &world.pods {
        for to in &world.pods {
            for port in &to.ports {
                let decision = decide(world, from, to, port.number, port.protocol);
                let mut found = Vec::new();
                if routes.contains(&RouteKind::Ip) {
                    found.push(Route::Ip);
                }
                if routes.contains(&RouteKind::Service) && from.reference != to.reference {
                    found.extend(services(world, &to.reference, port.number, port.protocol));
                }
                cells.extend(found.into_iter().map(|route| Cell {
                    id: cell_id(
                        &from.reference,
                        &to.reference,
                        port.number,
                        port.protocol,
                        &route,
                    ),
                    from: from.reference.clone(),
                    to: to.reference.clone(),
                    protocol: port.protocol,
                    port: port.number,
                    route,
                    expected: if decision.allowed {
                        Expected::Allowed
                    } else {
                        Expected::Denied
                    },
                    decision: decision.clone(),
                }));
            }
        }
    }
    cells
}

fn services(world: &World, to: &PodRef, number: u16, protocol: Protocol) -> Vec<Route> {
    let mut routes = Vec::new();
    for service in &world.services {
        let mut backends = world.pods.iter().filter(|pod| service.selects(pod));
        let (Some(backend), None) = (backends.next(), backends.next()) else {
            continue;
        };
        if backend.reference != *to {
            continue;
        }
        let matching = service.ports.iter().filter(|port| {
            port.protocol == protocol && port.target.resolve(backend, protocol) == Some(number)
        });
        routes.extend(matching.map(|port| Route::Service {
            name: service.name.clone(),
            port: port.port,
        }));
    }
    routes
}

fn cell_id(from: &PodRef, to: &PodRef, port: u16, protocol: Protocol, route: &Route) -> CellId {
    let route = match route {
        Route::Ip => "ip".to_owned(),
        Route::Service {
            name,
            port: service_port,
        } if *service_port == port => format!("svc/{name}"),
        Route::Service { name, port } => format!("svc/{name}:{port}"),
    };
    CellId(format!("{from}>{to}:{port}/{protocol}@{route}"))
}
