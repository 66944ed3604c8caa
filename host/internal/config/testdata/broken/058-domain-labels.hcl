accepted_domain "exa mple.org" {}
accepted_domain "*.*.example.org" {}
accepted_domain "[192.0.2.1]" {}
remote_domain "-x.example" {}
