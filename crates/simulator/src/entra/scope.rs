//! Reading the `scope` parameter (entra 3).

use crate::entra::failure::Failure;
use crate::entra::permission::Api;

/// Scopes of OpenID Connect; they belong to no resource.
const SIGN_IN_SCOPES: [&str; 4] = ["openid", "profile", "email", "offline_access"];

/// Where the three APIs are.
#[derive(Debug, Clone)]
pub(crate) struct Resources {
    pub(crate) environment: String,
    pub(crate) graph: String,
    /// Every finance and operations environment.
    pub(crate) erp: Vec<String>,
}

impl Resources {
    /// The API of a resource as a client wrote it, with or without a slash at its end.
    fn api(&self, resource: &str) -> Option<Api> {
        let resource = resource.strip_suffix('/').unwrap_or(resource);
        if resource == self.environment {
            Some(Api::DynamicsCrm)
        } else if resource == self.graph || resource == Api::Graph.app_id() {
            Some(Api::Graph)
        } else if self.erp.iter().any(|erp| erp == resource) {
            Some(Api::DynamicsErp)
        } else {
            None
        }
    }
}

/// What was asked of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) api: Api,
    /// As it was written: the audience of the token (entra 3).
    pub(crate) resource: String,
    /// `.default`: everything granted.
    pub(crate) default: bool,
    /// Values that were named.
    pub(crate) values: Vec<String>,
}

/// A scope parameter taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Scopes of OpenID Connect.
    pub(crate) sign_in: Vec<String>,
    /// Resources in the order of their first mention.
    pub(crate) resources: Vec<Asked>,
}

impl Scope {
    /// Takes `text` apart, refusing resources that are not in the tenant and mixtures that are not allowed.
    pub(crate) fn parse(text: &str, resources: &Resources) -> Result<Self, Failure> {
        let mut scope = Self::default();
        for part in text.split_whitespace() {
            if SIGN_IN_SCOPES.contains(&part) {
                scope.sign_in.push(part.to_owned());
                continue;
            }
            // Without a resource part Graph is meant (entra 3).
            let (resource, value) = match part.rsplit_once('/') {
                Some((resource, value)) => (resource, value),
                None => (resources.graph.as_str(), part),
            };
            let Some(api) = resources.api(resource) else {
                return Err(Failure::of(500_011).saying(format!(
                    "The resource principal named {resource} was not found in the tenant. This can happen if the application has not been installed by the administrator of the tenant."
                )));
            };
            let found = scope.resources.iter().position(|asked| asked.resource == resource);
            let index = found.unwrap_or_else(|| {
                scope.resources.push(Asked { api, resource: resource.to_owned(), default: false, values: Vec::new() });
                scope.resources.len() - 1
            });
            let asked = &mut scope.resources[index];
            if value == ".default" {
                asked.default = true;
            } else {
                asked.values.push(value.to_owned());
            }
        }
        if scope.resources.iter().any(|asked| asked.default && !asked.values.is_empty()) {
            return Err(Failure::of(70_011).saying(
                "The provided value for the input parameter 'scope' is not valid. .default scope can't be combined with resource-specific scopes.",
            ));
        }
        Ok(scope)
    }

    /// The one resource a token of a code or a device code is for.
    pub(crate) fn only(&self) -> Result<&Asked, Failure> {
        match self.resources.as_slice() {
            [asked] => Ok(asked),
            [] => Err(Failure::of(70_011)),
            _ => Err(Failure::of(28_000)),
        }
    }

    /// Whether a scope of OpenID Connect was asked for.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.sign_in.iter().any(|scope| scope == name)
    }
}

#[cfg(test)]
mod tests {
    use super::{Resources, Scope};
    use crate::entra::permission::Api;

    fn resources() -> Resources {
        Resources {
            environment: "http://127.0.0.1:7".to_owned(),
            graph: "http://127.0.0.1:7/graph".to_owned(),
            erp: vec!["http://127.0.0.1:7/erp".to_owned()],
        }
    }

    fn code(text: &str) -> u32 {
        Scope::parse(text, &resources()).and_then(|scope| scope.only().cloned()).unwrap_err().code
    }

    #[test]
    fn resources_are_told_apart_and_the_slash_stays_in_the_audience() {
        let scope = Scope::parse("openid http://127.0.0.1:7//.default offline_access", &resources()).unwrap();
        let asked = scope.only().unwrap();
        assert_eq!(
            (asked.api, asked.resource.as_str(), asked.default),
            (Api::DynamicsCrm, "http://127.0.0.1:7/", true)
        );
        assert!(scope.has("offline_access") && !scope.has("email"));
        let scope = Scope::parse("User.Read", &resources()).unwrap();
        assert_eq!(
            (scope.resources[0].api, scope.resources[0].values.as_slice()),
            (Api::Graph, ["User.Read".to_owned()].as_slice())
        );
        let scope = Scope::parse("http://127.0.0.1:7/erp/AX.FullAccess", &resources()).unwrap();
        assert_eq!(scope.resources[0].api, Api::DynamicsErp);
    }

    #[test]
    fn mixtures_are_refused() {
        assert_eq!(code("openid"), 70_011);
        assert_eq!(code("https://elsewhere.example/.default"), 500_011);
        assert_eq!(code("http://127.0.0.1:7/.default http://127.0.0.1:7/user_impersonation"), 70_011);
        assert_eq!(code("http://127.0.0.1:7/.default http://127.0.0.1:7/graph/.default"), 28_000);
    }
}
