"""Packaging. Accelerator builds of JAX are extras, so that the plain install is a small CPU one that works anywhere."""

from pathlib import Path

from setuptools import find_packages, setup

TEST = ['pytest>=8', 'pytest-xdist>=3.6']

setup(
    name='rlaif_jax',
    version='0.2.0',
    description='RLAIF vs. RLHF (arXiv 2309.00267) in JAX: align a language model with AI feedback',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    classifiers=[f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13)],
    packages=find_packages(include=['rlaif_jax', 'rlaif_jax.*']),
    package_data={
        'rlaif_jax.evaluation': ['pages/*'],
        'rlaif_jax.labeling': ['templates/*/*'],
        'rlaif_jax.micro': ['models/*/*', 'templates/*/*'],
    },
    install_requires=[
        'jax>=0.10,<0.13',
        'flax>=0.12.8',
        'optax>=0.2.8',
        'scipy>=1.14',
        'orbax-checkpoint>=0.11.25',
        'transformers>=5',
        'jinja2>=3.1',  # chat templates, pages
        'tensorflow-datasets>=4.9',
        'grain>=0.2.10',
        'safetensors>=0.6',
        'httpx2>=2,<3',  # asks labelers that are servers; huggingface_hub 2 brings it, too
        'rich>=13',
        'tensorboardX>=2.6',
        'matplotlib>=3.8',
        'pyarrow>=15',
    ],
    extras_require={
        'tpu': ['jax[tpu]'],
        'gpu': ['jax[cuda12]'],
        'cuda12': ['jax[cuda12]'],
        'cuda13': ['jax[cuda13]'],
        'test': TEST,
        'dev': [*TEST, 'ruff>=0.8'],
        'wandb': ['wandb>=0.31'],
    },
)
