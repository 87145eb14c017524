"""What dcprune itself brings, registered through the same hooks as everybody else's."""

from __future__ import annotations

from dcprune.hookspecs import Register, hookimpl


@hookimpl
def register_datasets(register: Register) -> None:
    sets = "dcprune.datasets.torchvision_sets"
    register(
        "fashion-mini", "dcprune.datasets.fashion_mini:FashionMini", summary="4,000 Fashion-MNIST images, built in"
    )
    register("cifar10", f"{sets}:Cifar10", summary="50,000 32x32 images, 10 classes")
    register("cifar100", f"{sets}:Cifar100", summary="50,000 32x32 images, 100 classes")
    register("fashion-mnist", f"{sets}:FashionMnist", summary="60,000 28x28 grey images, 10 classes")
    register("imagenette", f"{sets}:ImageNette", summary="9,469 photos, 10 easy ImageNet classes")
    register("imagenet", f"{sets}:ImageNet", summary="1.28M photos, 1,000 classes (no download)")
    register(
        "folder",
        "dcprune.datasets.folder:ImageFolder",
        summary="image folder with class sub-folders, or flat",
        argument="PATH",
    )
    register(
        "manifest",
        "dcprune.datasets.manifest:Manifest",
        summary="CSV, TSV or parquet file with image paths, labels, captions",
        argument="PATH",
    )
    register(
        "hf",
        "dcprune.datasets.huggingface:HuggingFace",
        summary="Hugging Face dataset from the hub, a saved folder or parquet files",
        argument="ORG/NAME[/CONFIG][@REVISION]|PATH",
    )
    register(
        "wds",
        "dcprune.datasets.webdataset:WebDataset",
        summary="WebDataset shards: a pattern like 'data/{000..009}.tar', or a folder of them",
        argument="PATH",
    )
    register(
        "npz",
        "dcprune.datasets.npz:NpzBatch",
        summary="images (arr_0) in a NumPy archive, as ADM has them",
        argument="PATH",
    )
    register(
        "pseudo",
        "dcprune.pseudo_classes:PseudoClasses",
        summary="a dataset with clusters of its embeddings as classes",
        argument="FILE",
    )


@hookimpl
def register_encoders(register: Register) -> None:
    register(
        "resnet18",
        "dcprune.encoders.resnet:ResNet18",
        summary="ResNet-18 trained on the dataset itself, or ImageNet weights",
    )
    register(
        "inceptionv3",
        "dcprune.encoders.inceptionv3:InceptionV3",
        summary="torchvision's ImageNet Inception-v3, prepared as in instance selection",
    )
    register(
        "inceptionv3-fid", "dcprune.encoders.inception_fid:InceptionV3Fid", summary="the FID network, through clean-fid"
    )
    register("clip-rn50", "dcprune.encoders.clip:ClipRn50", summary="CLIP's ResNet-50 with OpenAI's weights")
    register(
        "open_clip",
        "dcprune.encoders.clip:OpenClip",
        summary="image tower of any CLIP model of open_clip",
        argument="MODEL/PRETRAINED",
    )
    register("dinov2", "dcprune.encoders.dinov2:DinoV2", summary="class token of DINOv2, as dgm-eval computes it")
    register(
        "timm", "dcprune.encoders.timm_models:Timm", summary="pooled features of any model of timm", argument="MODEL"
    )
    register(
        "vae", "dcprune.encoders.vae:Vae", summary="pooled latents of an autoencoder of diffusers", argument="REPO"
    )
    register("ddae", "dcprune.encoders.ddae:Ddae", summary="activations of an unconditional DDPM run (--weights RUN)")
    register("pixels", "dcprune.encoders.pixels:Pixels", summary="the image itself, the baseline")


@hookimpl
def register_scorers(register: Register) -> None:
    register("random", "dcprune.scorers.random:Random", summary="uniform at random, the baseline")
    register(
        "gaussian", "dcprune.scorers.gaussian:Gaussian", summary="log-density of a Gaussian per class (DeVries 2020)"
    )
    register(
        "moderate", "dcprune.scorers.moderate:Moderate", summary="distance to the class centre, middle kept (Xia 2023)"
    )
    register("k-center", "dcprune.scorers.k_center:KCenter", summary="greedy cover, farthest first (Sener 2018)")
    register("herding", "dcprune.scorers.herding:Herding", summary="greedy match of the class mean (Welling 2009)")
    register("moment", "dcprune.scorers.moment:Moment", summary="mean and covariance of the class, by exchange")
    register(
        "cluster", "dcprune.scorers.cluster:Cluster", summary="near, mid or far part of k-means clusters (Briq 2024)"
    )
    register("semdedup", "dcprune.scorers.semdedup:SemDeDup", summary="semantic duplicates go first (Abbas 2023)")
    register(
        "prototypicality",
        "dcprune.scorers.prototypicality:Prototypicality",
        summary="cosine distance to the nearest k-means centroid (Sorscher 2022)",
    )
    register("density", "dcprune.scorers.density:Density", summary="distance to the k-th neighbour (DeVries 2020)")
    register("ccs", "dcprune.scorers.ccs:Ccs", summary="all levels of difficulty but the hardest (Zheng 2023)")
    register(
        "difficulty", "dcprune.scorers.difficulty:Difficulty", summary="loss of a trained diffusion model (D2C 2025)"
    )
    register("d2", "dcprune.scorers.d2:D2", summary="difficulty and diversity by message passing (Maharana 2023)")


@hookimpl
def register_backends(register: Register) -> None:
    register(
        "ddpm",
        "dcprune.backends.ddpm:Ddpm",
        summary="pixel-space DDPM on diffusers' UNet2DModel",
        presets="dcprune.backends.ddpm_presets:PRESETS",
    )
    register(
        "edm",
        "dcprune.backends.edm:Edm",
        summary="pixel-space EDM (Karras 2022) on diffusers' UNet2DModel",
        presets="dcprune.backends.edm_presets:PRESETS",
    )
    register(
        "mdt",
        "dcprune.backends.mdt.backend:Mdt",
        summary="masked diffusion transformers on latents (MDT, MDTv2, 2023)",
        presets="dcprune.backends.mdt.presets:PRESETS",
    )
    register(
        "sd",
        "dcprune.backends.stable_diffusion.backend:StableDiffusion",
        summary="Stable Diffusion of diffusers, fine-tuned on class prompts or captions",
        presets="dcprune.backends.stable_diffusion.presets:PRESETS",
    )


@hookimpl
def register_metrics(register: Register) -> None:
    register("fid", "dcprune.metrics.fid:Fid", summary="Frechet Inception distance, clean-fid's network and resizing")
    register(
        "fd",
        "dcprune.metrics.fd:FrechetDistance",
        summary="Frechet distance in any encoder's space",
        argument="ENCODER",
    )
    register(
        "cmmd", "dcprune.metrics.cmmd:Cmmd", summary="maximum mean discrepancy of CLIP embeddings (Jayasumana 2024)"
    )
    register("isc", "dcprune.metrics.isc:InceptionScore", summary="Inception score; needs no reference (Salimans 2016)")
    register("kid", "dcprune.metrics.kid:Kid", summary="kernel Inception distance (Binkowski 2018)")
    register(
        "kd", "dcprune.metrics.kd:KernelDistance", summary="kernel distance in any encoder's space", argument="ENCODER"
    )
    prdc = "dcprune.metrics.prdc"
    register(
        "precision",
        f"{prdc}:Precision",
        summary="share of images near real ones (Kynkaanniemi 2019)",
        argument="ENCODER",
    )
    register(
        "recall",
        f"{prdc}:Recall",
        summary="share of real images near any image (Kynkaanniemi 2019)",
        argument="ENCODER",
    )
    register(
        "density", f"{prdc}:Density", summary="how many real images an image is near (Naeem 2020)", argument="ENCODER"
    )
    register(
        "coverage",
        f"{prdc}:Coverage",
        summary="share of real images with an image near them (Naeem 2020)",
        argument="ENCODER",
    )
    register(
        "authpct",
        "dcprune.metrics.authpct:AuthPct",
        summary="percentage of images that are no copies of training images (Alaa 2022)",
        argument="ENCODER",
    )
