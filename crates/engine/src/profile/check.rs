//! `profile check`: signs in, gathers evidence, judges every row of the permission table.
//!
//! ```text
//! fresh token for Graph ─┬▶ claims ──────────────┐
//!                        └▶ tenant, grants, dates ┤
//! fresh token for each environment ─▶ claims ─────┼▶ judge each row ─ unknown? ─▶ a request that needs it ─▶ judge again
//!                        └▶ WhoAmI ───────────────┘
//! ```
//!
//! Tokens are fetched anew, because one from before a consent lacks what was granted (`entra` protocol, section 3.1). A
//! sign-in that fails ends the check with one message and one remedy; everything else that cannot be found out makes a
//! row unknown. Dataverse has no permissions for apps: there the probe of the environment counts (section 2.2).

use std::collections::HashMap;
use std::sync::Arc;

use dynavault_identity::{
    AppIdentity, Credential, ExposeSecret, TokenClaims, TokenError, TokenFault, TokenSource, admin_consent_url,
    token_source,
};
use dynavault_model::{Call, Diagnose, FaultKind, RowSource, Tally};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::assemble::{Engine, resource_of};
use crate::config::{EnvironmentConfig, EnvironmentKind, ProfileConfig};
use crate::failure::Failure;
use crate::finance::Finance;
use crate::graph::{AppCredential, Graph, GraphError};
use crate::profile::judge::{Carried, Directory, Evidence, excess, judge};
use crate::profile::report::{
    CredentialLine, EnvironmentLine, PermissionLine, PermissionState, ProfileCheck, SignedInAs, TenantInfo,
};
use crate::profile::{Api, PermissionRow, PermissionType, SignInMode, cloud_hint, graph_root_of, permissions_of};

/// Credentials that end within this time are worth a warning (`entra` protocol, section 9.1).
const EXPIRY_WARNED: SignedDuration = SignedDuration::from_hours(30 * 24);
const DAY_SECONDS: i64 = 86_400;
/// Codes that say that a service is not in the tenant (section 7).
const NO_RESOURCE_CODES: [&str; 2] = ["AADSTS500011", "AADSTS650052"];

/// A failed sign-in, whatever its cause, is what the command was to find out: it ends in the code for sign-in, except
/// where the configuration itself is wrong.
pub(crate) fn sign_in_failed(error: &TokenError) -> Failure {
    let kind = match error.kind() {
        FaultKind::Usage => FaultKind::Usage,
        FaultKind::Cancelled => FaultKind::Cancelled,
        _ => FaultKind::SignIn,
    };
    Failure::new(kind, dynavault_model::chain(error), error.remedy())
}

/// A token of one service, and what it says.
struct Fetched {
    tokens: Arc<dyn TokenSource>,
    carried: Carried,
    claims: Option<TokenClaims>,
    /// Why there is no token, where that is a finding and not a failure.
    refusal: Option<TokenError>,
}

struct Checker<'a> {
    engine: &'a Engine,
    profile: &'a ProfileConfig,
    identity: AppIdentity,
    mode: SignInMode,
    cancel: CancellationToken,
    warnings: Vec<String>,
    clocks: Vec<(String, SignedDuration)>,
}

impl Engine {
    /// Signs in with a profile and finds out which permissions of the table are granted. Changes nothing but the stored
    /// sign-in of a person, which is renewed.
    pub async fn check_profile(&self, name: &str, cancel: &CancellationToken) -> Result<ProfileCheck, Failure> {
        let profile = self.profile(name)?;
        let checker = Checker {
            engine: self,
            profile,
            identity: self.app_identity(profile)?,
            mode: SignInMode::of(&profile.credential),
            cancel: cancel.clone(),
            warnings: Vec::new(),
            clocks: Vec::new(),
        };
        checker.run().await
    }
}

impl Checker<'_> {
    async fn run(mut self) -> Result<ProfileCheck, Failure> {
        let environments = self.engine.environments_of(&self.profile.name);
        let graph_root = graph_root_of(self.profile)?;
        let of_graph = self.fetch(&graph_root).await?;
        let mut evidence = Evidence {
            mode: self.mode,
            carried: HashMap::from([(Api::Graph, of_graph.carried.clone())]),
            directory: None,
            user: None,
            probes: HashMap::new(),
        };
        let mut claims = of_graph.claims.clone();
        let mut lines = Vec::new();
        let api = Api::of_environment(self.profile.kind);
        let mut scope_of_environment = None;
        for environment in environments {
            self.warnings.extend(cloud_hint(self.profile, environment));
            let resource = resource_of(environment)?;
            let fetched = self.fetch(&resource).await?;
            evidence.carried.entry(api).or_insert_with(|| fetched.carried.clone());
            claims = claims.or_else(|| fetched.claims.clone());
            scope_of_environment.get_or_insert(resource);
            lines.push(self.probe_environment(environment, fetched).await);
        }

        let graph = matches!(of_graph.carried, Carried::Values(_) | Carried::Opaque)
            .then(|| {
                let (tokens, clock) = (Arc::clone(&of_graph.tokens), Arc::clone(self.engine.clock()));
                Graph::new(&graph_root, tokens, clock, self.cancel.clone())
            })
            .transpose()?;
        let mut found = Found { tenant: self.tenant_of(claims.as_ref()), ..Found::default() };
        if let Some(graph) = &graph {
            self.ask_graph(graph, claims.as_ref(), &mut evidence, &mut found).await?;
            self.compare_clock("Microsoft Graph".to_string(), graph.service_time());
        }
        let is_person = self.mode == SignInMode::Delegated;
        let object_id = claims.as_ref().and_then(|claims| claims.object_id.clone());
        evidence.user = found.person.clone().or_else(|| object_id.clone()).filter(|_| is_person);

        let mut permissions = Vec::new();
        for row in permissions_of(self.profile.kind) {
            let mut judged = judge(row, &evidence);
            if judged.state == PermissionState::Unknown
                && let Some(allowed) = self.probe(row, graph.as_ref(), scope_of_environment.as_deref()).await?
            {
                evidence.probes.insert((row.api, row.permission), allowed);
                judged = judge(row, &evidence);
            }
            let grant_url = (judged.state == PermissionState::Missing).then(|| self.consent_url(&found.tenant.id));
            permissions.push(PermissionLine {
                api: row.api.name(),
                permission: row.permission,
                of_type: row.of_type,
                state: judged.state,
                found_by: judged.found_by,
                needed_for: row.needed_for,
                note: judged.note,
                remedy: grant_url.as_ref().map(|url| self.remedy(row, url)),
                grant_url,
            });
        }
        self.warnings.extend(excess(&evidence));
        self.own_certificate(&mut found);
        self.warn_of_expiry(&found.credentials);
        Ok(ProfileCheck {
            profile: self.profile.name.clone(),
            kind: self.profile.kind,
            mode: self.mode,
            client_id: self.identity.client_id.clone(),
            tenant: found.tenant,
            signed_in_as: SignedInAs {
                kind: if is_person { "user" } else { "application" },
                id: found.person.or(object_id),
                name: found.name,
                store: match &self.identity.credential {
                    Credential::Delegated { store } => Some(store.describe()),
                    _ => None,
                },
            },
            permissions,
            environments: lines,
            credentials: found.credentials,
            groups: found.groups,
            warnings: self.warnings,
            clocks: self.clocks,
        })
    }

    fn tenant_of(&self, claims: Option<&TokenClaims>) -> TenantInfo {
        let told = claims.and_then(|claims| claims.tenant.clone());
        TenantInfo { id: told.unwrap_or_else(|| self.identity.tenant.clone()), ..TenantInfo::default() }
    }

    fn source(&self, scope: String) -> Result<Arc<dyn TokenSource>, Failure> {
        token_source(self.identity.clone(), scope, Arc::clone(self.engine.clock()))
            .map_err(|error| sign_in_failed(&error))
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Failure::new(FaultKind::Cancelled, "cancelled", None)),
            done = work => Ok(done),
        }
    }

    /// A token of one service that was issued just now.
    async fn fetch(&self, resource: &str) -> Result<Fetched, Failure> {
        let tokens = self.source(format!("{resource}/.default"))?;
        let token = match self.unless_cancelled(tokens.fresh_token()).await? {
            Ok(token) => token,
            Err(error) => {
                let Some(carried) = finding(&error) else { return Err(sign_in_failed(&error)) };
                return Ok(Fetched { tokens, carried, claims: None, refusal: Some(error) });
            }
        };
        let claims = TokenClaims::read(token.secret()).ok();
        let carried = match &claims {
            None => Carried::Opaque,
            Some(claims) if self.mode == SignInMode::AppOnly => Carried::Values(claims.roles.clone()),
            Some(claims) => Carried::Values(claims.scopes.clone()),
        };
        Ok(Fetched { tokens, carried, claims, refusal: None })
    }

    /// Whether an environment takes us in.
    async fn probe_environment(&mut self, environment: &EnvironmentConfig, fetched: Fetched) -> EnvironmentLine {
        let mut line = EnvironmentLine {
            environment: environment.name.clone(),
            state: "not-probed",
            user: None,
            organization: None,
            companies: None,
            data_entities: None,
            message: None,
            remedy: None,
            fault: None,
        };
        if let Some(error) = &fetched.refusal {
            // A missing consent is told by its row; an address that the tenant does not know has no row of its own.
            line.message = Some(dynavault_model::chain(error));
            if fetched.carried == Carried::NoResource {
                line.state = "failed";
                line.remedy = error.remedy();
                line.fault = Some(FaultKind::SignIn);
            }
            return line;
        }
        if environment.kind == EnvironmentKind::Uo {
            return self.probe_finance(environment, fetched, line).await;
        }
        let source = match self.engine.source_as(environment, fetched.tokens) {
            Ok(source) => source,
            Err(failure) => return failed_line(line, failure),
        };
        let call = Call { tally: Arc::new(Tally::default()), cancel: self.cancel.clone() };
        let answered = source.identity(&call).await;
        self.compare_clock(format!("environment {}", environment.name), source.service_time());
        match answered {
            Ok(identity) => EnvironmentLine {
                state: "ok",
                user: Some(identity.user_id),
                organization: identity.friendly_name,
                ..line
            },
            Err(error) => failed_line(line, error.into()),
        }
    }

    /// Whether an environment of Unified Operations takes us in. This version does not read any, so only a refusal counts;
    /// whatever else keeps the probe from succeeding is told and changes nothing.
    async fn probe_finance(
        &mut self,
        environment: &EnvironmentConfig,
        fetched: Fetched,
        line: EnvironmentLine,
    ) -> EnvironmentLine {
        let resource = match resource_of(environment) {
            Ok(resource) => resource,
            Err(failure) => return failed_line(line, failure),
        };
        let finance = Finance::new(&resource, fetched.tokens, Arc::clone(self.engine.clock()), self.cancel.clone());
        let finance = match finance {
            Ok(finance) => finance,
            Err(error) => return failed_line(line, error.into()),
        };
        let answered = finance.look().await;
        self.compare_clock(format!("environment {}", environment.name), finance.service_time());
        match answered {
            Ok(offer) => {
                self.warnings.extend(offer.lacking(&environment.name, &environment.companies));
                EnvironmentLine {
                    state: "ok",
                    companies: Some(offer.companies.len() as u64),
                    data_entities: Some(offer.data_entities),
                    ..line
                }
            }
            Err(error) if matches!(error.kind(), FaultKind::SignIn | FaultKind::Cancelled) => {
                failed_line(line, error.into())
            }
            Err(error) => EnvironmentLine { message: Some(dynavault_model::chain(&error)), ..line },
        }
    }

    fn compare_clock(&mut self, whose: String, time: Option<Timestamp>) {
        let now = self.engine.clock().now();
        self.clocks.extend(time.map(|time| (whose, time.duration_since(now))));
    }

    /// What Graph knows: tenant, person or app, grants, dates. What may not be read stays unknown.
    async fn ask_graph(
        &mut self,
        graph: &Graph,
        claims: Option<&TokenClaims>,
        evidence: &mut Evidence,
        found: &mut Found,
    ) -> Result<(), Failure> {
        if let Some(organization) = self.allowed(graph.organization().await, "the tenant")? {
            let told = claims.and_then(|claims| claims.tenant.as_deref());
            if told.is_some_and(|told| !told.eq_ignore_ascii_case(&organization.id)) {
                return Err(Failure::new(
                    FaultKind::SignIn,
                    format!(
                        "Microsoft Graph answers for tenant {}, the token is of tenant {}",
                        organization.id, found.tenant.id
                    ),
                    Some(format!("check authority, graph and cloud of profile {}", self.profile.name)),
                ));
            }
            let domains = organization.domains();
            found.tenant = TenantInfo { id: organization.id, name: organization.display_name, domains };
        }
        if self.mode == SignInMode::Delegated
            && let Some(me) = self.allowed(graph.me().await, "the signed-in person")?
        {
            found.name = me.user_principal_name.or(me.display_name);
            found.person = Some(me.id);
        }
        // A token of the Azure CLI or of a managed identity is another app's than the configured one.
        let told = claims.and_then(|claims| claims.app_id.clone());
        let client_id = told.unwrap_or_else(|| self.identity.client_id.clone());
        let apis = [Api::Graph, Api::of_environment(self.profile.kind)];
        match graph.resources(&apis).await {
            Err(error) if error.is_denied() => {
                // This very call is what the permission is for.
                evidence.probes.insert((Api::Graph, "Directory.Read.All"), false);
            }
            other => {
                let resources = self.allowed(other, "the services of the tenant")?;
                let principal = self.allowed(graph.principal(&client_id).await, "our app")?;
                if let (Some(resources), Some(principal)) = (resources, principal) {
                    let mut directory = Directory { resources, ..Directory::default() };
                    match self.mode {
                        SignInMode::AppOnly => {
                            found.name.clone_from(&principal.display_name);
                            let roles = graph.role_assignments(&principal.id).await;
                            directory.roles = self.allowed(roles, "the granted application permissions")?;
                        }
                        SignInMode::Delegated => {
                            let scopes = graph.scope_grants(&principal.id).await;
                            directory.scopes = self.allowed(scopes, "the granted delegated permissions")?;
                        }
                    }
                    evidence.directory = Some(directory);
                }
            }
        }
        let hint = match &self.identity.credential {
            Credential::ClientSecret { secret } => Some(secret.expose_secret().chars().take(3).collect::<String>()),
            _ => None,
        };
        if let Some(hint) = hint
            && let Some(credentials) = self.allowed(graph.credentials(&client_id).await, "the app's credentials")?
        {
            found.credentials = self.ours(credentials.password_credentials, &hint);
        }
        if self.profile.kind == EnvironmentKind::Uo {
            found.groups = self.allowed(graph.groups().await, "the groups")?;
        }
        Ok(())
    }

    /// An answer of Graph, or nothing. Trouble is worth a warning; what may not be read is normal for many profiles.
    fn allowed<T>(&mut self, answer: Result<T, GraphError>, what: &str) -> Result<Option<T>, Failure> {
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(GraphError::Denied(_)) => Ok(None),
            Err(error) if error.kind() == FaultKind::Cancelled => Err(error.into()),
            Err(error) => {
                self.warnings.push(format!("could not learn {what}: {}", dynavault_model::chain(&error)));
                Ok(None)
            }
        }
    }

    /// The secret in use among those of the registration, by its first characters; all of them if none fits.
    fn ours(&self, credentials: Vec<AppCredential>, hint: &str) -> Vec<CredentialLine> {
        let fits = |credential: &AppCredential| credential.hint.as_deref() == Some(hint);
        let any = credentials.iter().any(fits);
        let chosen = credentials.into_iter().filter(|credential| !any || fits(credential));
        let lines = chosen.filter_map(|credential| {
            Some(self.credential_line("client-secret", credential.display_name, credential.end_date_time?))
        });
        lines.collect()
    }

    fn own_certificate(&self, found: &mut Found) {
        if let Credential::ClientCertificate { certificate } = &self.identity.credential {
            found.credentials.push(self.credential_line("client-certificate", None, certificate.expires()));
        }
    }

    fn credential_line(&self, kind: &'static str, name: Option<String>, expires: Timestamp) -> CredentialLine {
        let left = expires.duration_since(self.engine.clock().now());
        CredentialLine { kind, name, expires, days_left: left.as_secs().div_euclid(DAY_SECONDS) }
    }

    fn warn_of_expiry(&mut self, credentials: &[CredentialLine]) {
        let now = self.engine.clock().now();
        for credential in credentials.iter().filter(|line| line.expires.duration_since(now) < EXPIRY_WARNED) {
            self.warnings.push(format!(
                "the {} in use ends on {} ({} days left); make a new one and configure it before",
                credential.kind,
                credential.expires.strftime("%Y-%m-%d"),
                credential.days_left,
            ));
        }
    }

    /// A request that needs the permission: whether it was allowed, `None` if that cannot be said.
    async fn probe(
        &self,
        row: &PermissionRow,
        graph: Option<&Graph>,
        environment: Option<&str>,
    ) -> Result<Option<bool>, Failure> {
        let answer = |answered: Result<(), GraphError>| match answered {
            Ok(()) => Some(true),
            Err(error) => error.is_denied().then_some(false),
        };
        match (row.api, row.permission, graph) {
            (Api::Graph, "User.Read", Some(graph)) => Ok(answer(graph.me().await.map(drop))),
            (Api::Graph, "Group.Read.All", Some(graph)) => Ok(answer(graph.may_read_groups().await)),
            (Api::Graph, ..) => Ok(None),
            _ if row.of_type == PermissionType::Delegated => match environment {
                // Asked for by name, a permission that nobody consented to is refused (section 3).
                Some(resource) if matches!(self.identity.credential, Credential::Delegated { .. }) => {
                    let tokens = self.source(format!("{resource}/{}", row.permission))?;
                    Ok(match self.unless_cancelled(tokens.fresh_token()).await? {
                        Ok(_) => Some(true),
                        Err(error) => (error.fault() == Some(TokenFault::ConsentNeeded)).then_some(false),
                    })
                }
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    fn consent_url(&self, tenant: &str) -> String {
        let graph = graph_root_of(self.profile).ok();
        admin_consent_url(&self.identity.authority, graph.as_deref(), tenant, &self.identity.client_id, None)
            .to_string()
    }

    fn remedy(&self, row: &PermissionRow, url: &str) -> String {
        format!(
            "see that the app registration {} lists the {} permission {} of {}, then let an administrator open {url}",
            self.identity.client_id,
            row.of_type.name(),
            row.permission,
            row.api.name(),
        )
    }
}

/// What was learned beside the evidence.
#[derive(Default)]
struct Found {
    tenant: TenantInfo,
    /// Object id of the signed-in person.
    person: Option<String>,
    /// Name of the person or of the app.
    name: Option<String>,
    credentials: Vec<CredentialLine>,
    groups: Option<u64>,
}

/// A refusal that is an answer to the question which permissions there are.
fn finding(error: &TokenError) -> Option<Carried> {
    if error.fault() == Some(TokenFault::ConsentNeeded) {
        return Some(Carried::NoConsent);
    }
    let text = dynavault_model::chain(error);
    NO_RESOURCE_CODES.iter().any(|code| text.contains(code)).then_some(Carried::NoResource)
}

fn failed_line(line: EnvironmentLine, failure: Failure) -> EnvironmentLine {
    EnvironmentLine {
        state: "failed",
        message: Some(failure.message()),
        remedy: failure.remedy().map(str::to_string),
        fault: Some(failure.kind()),
        ..line
    }
}
