# For a site's rezconfig: one of the two forms.

# 1. The plugin. The directory in which `rezplugins` is:
plugin_path = ["/opt/mkmeta/share/rez"]
release_hooks = ["mkmeta_release"]

# 2. rez's own hook, without a plugin. It prints what failed, and goes on:
# release_hooks = ["command"]
# plugins = {
#     "release_hook": {
#         "command": {
#             "post_release_commands": [
#                 {"command": "mkmeta", "args": ["release", "--config", "/etc/mkmeta/sw.toml", "{package.base}"]},
#             ],
#         },
#     },
# }
