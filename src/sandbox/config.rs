//! What a sandbox is to be: its namespaces, its kernel parameters, its files. Pure.

use std::collections::BTreeMap;

use crate::error::{Error, Kind, Result};

/// The kernel parameters that every pod with a network of its own has unless its configuration
/// says otherwise: those that containerd's CRI plugin sets by default.
const DEFAULT_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Whose namespace of a kind the containers of a pod are in (CRI's `NamespaceMode`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// The pod's: they share it.
    #[default]
    Pod,
    /// Each has one of its own.
    Container,
    /// The node's.
    Node,
    /// Another container's.
    Target,
}

impl Mode {
    /// By CRI's number.
    pub fn from_number(number: i32) -> Result<Mode> {
        match number {
            0 => Ok(Mode::Pod),
            1 => Ok(Mode::Container),
            2 => Ok(Mode::Node),
            3 => Ok(Mode::Target),
            _ => Err(Error::invalid(format!("unknown namespace mode {number}"))),
        }
    }
}

/// How names are resolved in a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Domains to search.
    pub searches: Vec<String>,
    /// The resolver's options.
    pub options: Vec<String>,
}

impl Dns {
    /// The text of a `resolv.conf`; empty if there is nothing to say.
    pub fn resolv_conf(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

/// Whose pod it is (CRI's `PodSandboxMetadata`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The pod's name.
    pub name: String,
    /// Its unique ID.
    pub uid: String,
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// How often it was created before.
    pub attempt: u32,
}

/// The configuration of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Whose pod it is.
    pub metadata: Metadata,
    /// Empty: the node's.
    pub hostname: String,
    /// Where the containers' logs are.
    pub log_directory: String,
    /// `None`: as the node.
    pub dns: Option<Dns>,
    /// Labels, by key.
    pub labels: BTreeMap<String, String>,
    /// Annotations, by key.
    pub annotations: BTreeMap<String, String>,
    /// The cgroup that the containers' cgroups are in; may be empty.
    pub cgroup_parent: String,
    /// A file of the network namespace to join; empty: the node's network.
    pub netns_path: String,
    /// Whose network the pod has.
    pub network: Mode,
    /// Whose pids.
    pub pid: Mode,
    /// Whose IPC objects and `/dev/shm`.
    pub ipc: Mode,
    /// Whose user IDs.
    pub user: Mode,
    /// Kernel parameters, by name.
    pub sysctls: BTreeMap<String, String>,
}

impl Config {
    /// Whether the pod has the node's network, and with it the node's hostname.
    pub fn has_node_network(&self) -> bool {
        self.network == Mode::Node
    }

    /// Whether it has the node's IPC objects.
    pub fn has_node_ipc(&self) -> bool {
        self.ipc == Mode::Node
    }

    /// Whether its containers share pids: it needs a process 1.
    pub fn shares_pids(&self) -> bool {
        self.pid == Mode::Pod
    }

    /// An error unless the shim can make such a sandbox.
    pub fn check(&self) -> Result<()> {
        if self.user != Mode::Node {
            return Err(Error::new(
                Kind::Unimplemented,
                "user namespaces are not supported without a pause container",
            ));
        }
        for (what, mode) in [("network", self.network), ("ipc", self.ipc)] {
            if !matches!(mode, Mode::Pod | Mode::Node) {
                let message = format!("{what} namespace of a pod in mode {mode:?}");
                return Err(Error::invalid(message));
            }
        }
        if self.pid == Mode::Target {
            let message = "pid namespace of a pod in mode Target";
            return Err(Error::invalid(message));
        }
        if !self.has_node_network() && self.netns_path.is_empty() {
            return Err(Error::invalid("no network namespace for the pod"));
        }
        self.sysctls
            .keys()
            .try_for_each(|name| self.check_sysctl(name))
    }

    /// An error unless the parameter `name` belongs to a namespace that the pod has for itself:
    /// others would change the node.
    fn check_sysctl(&self, name: &str) -> Result<()> {
        let refused = |reason: &str| {
            let message = format!("sysctl {name:?}: {reason}");
            Err(Error::invalid(message))
        };
        let parts: Vec<&str> = name.split(['.', '/']).collect();
        if parts.iter().any(|part| part.is_empty()) || name.contains('\0') {
            return refused("not the name of a kernel parameter");
        }
        let own = match parts[..] {
            ["net", _, ..] => !self.has_node_network(),
            ["kernel", "domainname"] => !self.has_node_network(),
            ["kernel", "sem"] => !self.has_node_ipc(),
            ["kernel", last] if last.starts_with("shm") || last.starts_with("msg") => {
                !self.has_node_ipc()
            }
            ["fs", "mqueue", _] => !self.has_node_ipc(),
            _ => return refused("not one of a namespace"),
        };
        match own {
            true => Ok(()),
            false => refused("the pod has that namespace of the node"),
        }
    }

    /// All kernel parameters of the pod, with the defaults.
    pub fn all_sysctls(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        if !self.has_node_network() {
            let defaults = DEFAULT_SYSCTLS.map(|(name, value)| (name.to_owned(), value.to_owned()));
            all.extend(defaults);
        }
        all.extend(self.sysctls.clone());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Config {
        Config {
            netns_path: "/run/netns/x".into(),
            user: Mode::Node,
            ..Config::default()
        }
    }

    fn with_sysctl(config: Config, name: &str) -> Config {
        Config {
            sysctls: [(name.to_owned(), "1".to_owned())].into(),
            ..config
        }
    }

    #[test]
    fn sysctls_of_namespaces_that_the_pod_has() {
        for name in [
            "net.core.somaxconn",
            "net/ipv4/conf/eth0.1/forwarding",
            "kernel.shmmni",
            "kernel.msgmax",
            "kernel.sem",
            "kernel.domainname",
            "fs.mqueue.msg_max",
        ] {
            assert_eq!(with_sysctl(pod(), name).check(), Ok(()), "{name}");
        }
        for name in [
            "",
            "net",
            "net.",
            "net..x",
            "net./../kernel.x",
            "vm.swappiness",
            "kernel.hostname",
            "kernel.shm/../panic",
            "fs.file-max",
            "/net.core.somaxconn",
        ] {
            let error = with_sysctl(pod(), name).check().unwrap_err();
            assert!(error.to_string().starts_with("sysctl "), "{name}: {error}");
        }
    }

    #[test]
    fn sysctls_of_namespaces_of_the_node_are_refused() {
        let node = || Config {
            network: Mode::Node,
            ipc: Mode::Node,
            ..pod()
        };
        for name in ["net.core.somaxconn", "kernel.shmmni", "kernel.domainname"] {
            let error = with_sysctl(node(), name).check().unwrap_err();
            assert!(error.to_string().ends_with("of the node"), "{error}");
        }
        assert!(node().all_sysctls().is_empty());
        assert_eq!(node().check(), Ok(()));
    }

    #[test]
    fn sysctls_of_the_pod_replace_the_defaults() {
        let name = "net.ipv4.ip_unprivileged_port_start";
        let all = with_sysctl(pod(), name).all_sysctls();
        assert_eq!((all.len(), all[name].as_str()), (2, "1"));
        assert_eq!(pod().all_sysctls()[name], "0");
    }

    #[test]
    fn modes_that_a_pod_cannot_have() {
        let bad: [fn(&mut Config); 6] = [
            |config| config.network = Mode::Container,
            |config| config.ipc = Mode::Container,
            |config| config.ipc = Mode::Target,
            |config| config.pid = Mode::Target,
            |config| config.user = Mode::Pod,
            |config| config.netns_path.clear(),
        ];
        for (n, change) in bad.into_iter().enumerate() {
            let mut config = pod();
            change(&mut config);
            assert!(config.check().is_err(), "{n}");
        }
        for mode in [Mode::Pod, Mode::Container, Mode::Node] {
            assert_eq!(Config { pid: mode, ..pod() }.check(), Ok(()));
        }
    }

    #[test]
    fn resolv_conf_has_the_order_of_containerds() {
        let dns = Dns {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.b".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        let expected = "search a.b b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n";
        assert_eq!(dns.resolv_conf(), expected);
        assert_eq!(Dns::default().resolv_conf(), "");
    }
}
