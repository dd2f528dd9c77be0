"""Models of ``transformers``, from small configs and with random weights.

Of vision models ResNet, ConvNeXt, ViT and Swin are those of ``transformers`` too.
"""

import torch
from torch import nn

from .exhibit import Zoo, pictures, tokens


class Logits(nn.Module):
    """A model of ``transformers`` as a function of one tensor to its logits."""

    def __init__(self, model, name, **named):
        super().__init__()
        self.model, self.name, self.named = model, name, named

    def forward(self, x):
        return self.model(**{self.name: x}, **self.named).logits


def gpt2(tied=True):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=12, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
        use_cache=False, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    x = tokens()
    return Zoo(
        Logits(GPT2LMHeadModel(config), "input_ids"), x[:, :-1].contiguous(), x[:, 1:].contiguous()
    )


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=4, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    x = tokens()[:, :-1].contiguous()
    return Zoo(Logits(BertForSequenceClassification(config), "input_ids"), x, x[:, 3] % 4)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        initializer_range=0.2, use_cache=False, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    x = tokens()
    return Zoo(
        Logits(LlamaForCausalLM(config), "input_ids"), x[:, :-1].contiguous(), x[:, 1:].contiguous()
    )


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=4, num_channels=1, num_labels=4, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Zoo(Logits(ViTForImageClassification(config), "pixel_values"), *pictures())


class WhisperTagger(nn.Module):
    """Whisper's decoder over the states of its encoder; logits for each token."""

    def __init__(self):
        super().__init__()
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperDecoder

        config = WhisperConfig(
            vocab_size=12, d_model=16, decoder_layers=1, decoder_attention_heads=2,
            decoder_ffn_dim=24, max_target_positions=16, dropout=0.0, attention_dropout=0.0,
            activation_dropout=0.0, init_std=0.2, pad_token_id=0, bos_token_id=0, eos_token_id=0,
            decoder_start_token_id=0, use_cache=False, encoder_layers=1,
        )  # fmt: skip
        self.decoder = WhisperDecoder(config)
        self.head = nn.Linear(16, 12, bias=False)
        g = torch.Generator().manual_seed(2)
        self.register_buffer("heard", torch.randn(1, 5, 16, generator=g))

    def forward(self, x):
        heard = self.heard.expand(len(x), -1, -1)
        state = self.decoder(input_ids=x, encoder_hidden_states=heard).last_hidden_state
        return self.head(state)


def whisper():
    x = tokens()
    return Zoo(WhisperTagger(), x[:, :-1].contiguous(), x[:, 1:].contiguous())


def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic",
        num_labels=4,
    )  # fmt: skip
    return Zoo(Logits(ResNetForImageClassification(config), "pixel_values"), *pictures(size=16))


def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        num_channels=1, patch_size=2, num_stages=2, hidden_sizes=[4, 6], depths=[1, 1],
        num_labels=4, layer_scale_init_value=0.5, initializer_range=0.2,
    )  # fmt: skip
    return Zoo(Logits(ConvNextForImageClassification(config), "pixel_values"), *pictures())


def swin():
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=8, patch_size=2, num_channels=1, embed_dim=8, depths=[2], num_heads=[2],
        window_size=2, num_labels=4, initializer_range=0.2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, drop_path_rate=0.0, mlp_ratio=2.0,
    )  # fmt: skip
    return Zoo(Logits(SwinForImageClassification(config), "pixel_values"), *pictures())
