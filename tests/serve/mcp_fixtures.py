"""A server with what MCP's conformance suite asks for, to be served by our HTTP stack."""

import asyncio
import base64
import json
from typing import Annotated

from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Elicit, ListRoots, Resolve, Sample
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.types import (
    AudioContent,
    Completion,
    EmbeddedResource,
    ImageContent,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
WAV = (  # without a sample
    b"RIFF$\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00@\x1f\x00\x00@\x1f\x00\x00\x01\x00"
    b"\x08\x00data\x00\x00\x00\x00"
)


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)


def _image() -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(PNG).decode(), mime_type="image/png")


def _embedded(uri: str, text: str, kind: str = "text/plain") -> EmbeddedResource:
    found = TextResourceContents(uri=uri, mime_type=kind, text=text)
    return EmbeddedResource(type="resource", resource=found)


class Named(BaseModel):
    name: str


def fixtures() -> MCPServer:
    """The server."""
    server = MCPServer("fixtures", version="1", log_level="WARNING")
    _add_tools(server)
    _add_questions(server)
    _add_resources(server)
    _add_prompts(server)
    return server


def _add_tools(server: MCPServer) -> None:
    @server.tool("test_simple_text", structured_output=False)
    def simple_text() -> str:
        """Give a text."""
        return "This is a simple text response for testing."

    @server.tool("test_image_content", structured_output=False)
    def image_content() -> list[ImageContent]:
        """Give an image."""
        return [_image()]

    @server.tool("test_audio_content", structured_output=False)
    def audio_content() -> list[AudioContent]:
        """Give a sound."""
        data = base64.b64encode(WAV).decode()
        return [AudioContent(type="audio", data=data, mime_type="audio/wav")]

    @server.tool("test_embedded_resource", structured_output=False)
    def embedded_resource() -> list[EmbeddedResource]:
        """Give a resource."""
        return [_embedded("test://embedded-resource", "This is an embedded resource content.")]

    @server.tool("test_multiple_content_types", structured_output=False)
    def several() -> list[TextContent | ImageContent | EmbeddedResource]:
        """Give a text, an image and a resource."""
        data = json.dumps({"test": "data", "value": 123})
        mixed = _embedded("test://mixed-content-resource", data, "application/json")
        return [_text("Multiple content types test:"), _image(), mixed]

    @server.tool("test_error_handling")
    def error_handling() -> str:
        """Fail."""
        raise ToolError("This tool intentionally returns an error for testing")

    @server.tool("test_tool_with_progress", structured_output=False)
    async def with_progress(context: Context) -> str:
        """Report progress."""
        for done in (0, 50, 100):
            await context.report_progress(done, 100)
            await asyncio.sleep(0.05)
        return "done"


def _add_questions(server: MCPServer) -> None:
    """Tools that ask the client in the middle of a call."""

    def name() -> Elicit[Named]:
        return Elicit("What is your name?", Named)

    def capital() -> Sample:
        asked = SamplingMessage(role="user", content=_text("What is the capital of France?"))
        return Sample([asked], max_tokens=100)

    @server.tool("test_input_required_result_elicitation", structured_output=False)
    def elicited(user_name: Annotated[Named, Resolve(name)]) -> str:
        """Ask for a name."""
        return f"Hello, {user_name.name}!"

    @server.tool("test_input_required_result_sampling", structured_output=False)
    def sampled(capital_question: Annotated[object, Resolve(capital)]) -> str:
        """Ask the client's model."""
        return f"It said {capital_question}"

    @server.tool("test_input_required_result_list_roots", structured_output=False)
    def rooted(client_roots: Annotated[object, Resolve(lambda: ListRoots())]) -> str:
        """Ask for the client's folders."""
        return f"Its folders: {client_roots}"


def _add_resources(server: MCPServer) -> None:
    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        """A text."""
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        """An image."""
        return PNG

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:
        """Data of an id."""
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def _add_prompts(server: MCPServer) -> None:
    @server.prompt("test_simple_prompt")
    def simple() -> str:
        """A text."""
        return "This is a simple prompt for testing."

    @server.prompt("test_prompt_with_arguments")
    def with_arguments(arg1: str, arg2: str) -> str:
        """A text with arguments."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt("test_prompt_with_embedded_resource")
    def with_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803 - the suite's name
        """A resource and a text."""
        found = _embedded(resourceUri, "Embedded resource content for testing.")
        return [UserMessage(found), UserMessage("Please process the embedded resource above.")]

    @server.prompt("test_prompt_with_image")
    def with_image() -> list[UserMessage]:
        """An image and a text."""
        return [UserMessage(_image()), UserMessage("Please analyze the image above.")]

    @server.completion()
    async def complete(ref: object, argument: object, context: object) -> Completion:
        return Completion(values=["paris", "park", "party"], total=3, has_more=False)
