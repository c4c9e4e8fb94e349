"""Which requests go to which server."""

from effopd.servers.api import Api
from effopd.servers.settings import ServerSettings
from effopd.servers.sglang_api import SGLangApi
from effopd.servers.vllm_api import VLLMApi


def api_of(settings: ServerSettings) -> Api:
    """The requests of the server's kind."""
    return VLLMApi(settings.model) if settings.flavor == "vllm" else SGLangApi(settings.model)
